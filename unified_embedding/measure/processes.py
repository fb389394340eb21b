"""CPU time and memory of a server's processes, by the part each of them plays."""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import psutil

# The Python backend's stub names the model.py it runs on its command line.
_STUB: Final = re.compile(r"/([^/]+)/\d+/model\.py$")
# tritonserver, and the Python program that started it and looks after it.
_SERVER: Final = re.compile(r"unified_embedding\.serving\.tritonserver$|/bin/tritonserver$")


@dataclass(frozen=True)
class Usage:
    """What a server had used at one moment.

    Attributes:
        cpu_s: user and system seconds since its start, by part.
        memory_mb: proportional set size in 10^6 bytes (a page shared by n processes counts
            1/n in each), summed over its processes.
        processes: how many there are.
    """

    cpu_s: Mapping[str, float] = field(default_factory=dict)
    memory_mb: float = 0.0
    processes: int = 0

    def cpu_since(self, earlier: "Usage") -> dict[str, float]:
        """CPU seconds used since `earlier`, by part."""
        return {part: used - earlier.cpu_s.get(part, 0.0) for part, used in self.cpu_s.items()}


class ProcessTree:
    """A server process and all its descendants."""

    def __init__(self, pid: int) -> None:
        """Raises psutil.NoSuchProcess when there is no such process."""
        self._root = psutil.Process(pid)

    @classmethod
    def listening_at(cls, url: str) -> Self | None:
        """The tree of the process that listens at host:port on this machine, if it is ours."""
        host, _, port = url.rpartition(":")
        if host not in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0") or not port.isdigit():
            return None
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                for connection in process.net_connections(kind="tcp"):
                    if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(
                        port
                    ):
                        return cls(process.pid)
        return None

    def pause(self) -> None:
        """Stop every process where it is (SIGSTOP): it uses nothing until `resume`."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Let every process go on."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def usage(self) -> Usage:
        """CPU seconds and memory of every living process of the tree."""
        cpu: dict[str, float] = {}
        memory, count = 0.0, 0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                part = _part(process)
                cpu[part] = cpu.get(part, 0.0) + times.user + times.system
                memory += process.memory_full_info().pss / 1e6
                count += 1
        return Usage(cpu, memory, count)

    def _processes(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


def cpu_seconds(trees: Iterable[ProcessTree]) -> float:
    """CPU seconds of all processes in `trees`, each once.

    Of ended processes too, as soon as their parents have waited for them.
    """
    whole = 0.0
    for process in {one.pid: one for tree in trees for one in tree._processes()}.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            # User and system, its own and of children that it has waited for.
            whole += sum(process.cpu_times()[:4])
    return whole


def _part(process: psutil.Process) -> str:
    for argument in process.cmdline():
        model = _STUB.search(argument)
        if model is not None:
            return model[1]
        if _SERVER.search(argument):
            return "tritonserver"
    return str(process.name())
