"""What Linux tells of processes in /proc, as far as the supervisor asks; see proc(5)."""

import contextlib
import os
from pathlib import Path
from typing import Final

SERVER: Final = "tritonserver"
"""What Linux calls Triton's process."""

STUB: Final = "triton_python_backend_stub"
"""The program that runs a Python model: one process for each instance."""

_PROC: Final = Path("/proc")
_LISTEN: Final = "0A"
_NAME_LENGTH: Final = 15


def name(pid: int) -> str:
    """The first 15 characters of a process' name; empty when there is none such."""
    return _read(pid, "comm").strip()


def state(pid: int) -> str:
    """R, S, D, T (stopped), Z (ended, and not yet waited for), ...; empty when there is none."""
    return _read(pid, "stat").rpartition(")")[2].strip()[:1]


def parent(pid: int) -> int:
    """The process id of its parent; 0 when there is none."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def start(pid: int) -> float:
    """When it was started, in seconds since boot; 0 when there is none."""
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def user(pid: int) -> int | None:
    """The user that it runs as; None when there is no such process."""
    # The owner of /proc/PID is root as soon as a process begins to end.
    for line in _read(pid, "status").splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[2])
    return None


def children(pid: int) -> list[int]:
    """Its children, whichever of its threads started them."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return sorted(found)


def is_stub(pid: int) -> bool:
    """Whether it runs a Python model for Triton."""
    return name(pid) == STUB[:_NAME_LENGTH]


def stubs(server: int) -> list[int]:
    """The processes of a tritonserver's Python models."""
    return list(filter(is_stub, children(server)))


def model_of(stub: int) -> str:
    """The model that a stub runs; empty when it ends, or is no stub."""
    words = _words(stub)
    return Path(words[1]).parent.parent.name if words else ""


def region_of(stub: int) -> str:
    """The file in /dev/shm that a stub shares with its server; empty as in `model_of`."""
    words = _words(stub)
    return words[2] if words else ""


def _words(stub: int) -> list[str]:
    # triton_python_backend_stub REPOSITORY/MODEL/VERSION/model.py REGION ...
    words = _read(stub, "cmdline").split("\0")
    return words if Path(words[0]).name == STUB and len(words) > 2 else []


def everyone() -> list[int]:
    """All processes that can be seen."""
    return sorted(int(entry) for entry in os.listdir(_PROC) if entry.isdigit())


def listens(pid: int) -> bool:
    """Whether it waits for connections at a TCP port."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in _read(pid, f"net/{table}").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN:
                sockets.add(f"socket:[{fields[9]}]")
    with contextlib.suppress(OSError):
        for descriptor in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(descriptor) in sockets:
                    return True
    return False


def _read(pid: int, what: str) -> str:
    try:
        return (_PROC / str(pid) / what).read_text(errors="replace")
    except OSError:
        return ""
