"""Start a tritonserver of this environment, or another program, and stop it again."""

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unified_embedding.errors import ServerUnavailable
from unified_embedding.serving import processes

_PROTOCOLS: Final = ("http", "grpc", "metrics")
_LOG_TAIL: Final = 3000
_GIVEN_AWAY: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT: Final = 10_000
_random: Final = random.SystemRandom()


@dataclass(frozen=True)
class LocalServer:
    """A running server on loopback.

    Attributes:
        process: the launcher. It looks after tritonserver, which is its child.
        grpc_url: host:port for gRPC.
        http_url: base address for HTTP.
        metrics_url: address of the Prometheus metrics.
        log: file that receives the server's output.
    """

    process: subprocess.Popen[bytes]
    grpc_url: str
    http_url: str
    metrics_url: str
    log: Path

    @property
    def server_pid(self) -> int:
        """Process id of tritonserver itself: another one after it was started again.

        Raises:
            ServerUnavailable: there is none at this moment.
        """
        for pid in processes.children(self.process.pid):
            if processes.name(pid) == processes.SERVER:
                return pid
        raise ServerUnavailable("tritonserver is not running")

    def stop(self, timeout: float = 60) -> int:
        """Send SIGTERM, as an orchestrator does; return the exit code."""
        return end(self.process, timeout)


def start(
    repository: Path, log: Path, arguments: Sequence[str] = (), timeout: float = 120
) -> LocalServer:
    """Start tritonserver on free ports and wait until it is ready.

    Raises:
        ServerUnavailable: it ended or was not ready within `timeout` seconds; the message
            holds the end of its log.
    """
    ports = dict(zip(_PROTOCOLS, free_ports(len(_PROTOCOLS)), strict=True))
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    command = [sys.executable, "-m", "unified_embedding.serving.tritonserver"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, f"--model-repository={repository}", *flags, *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the caller, who then stops the server in order.
            start_new_session=True,
        )
    server = LocalServer(
        process,
        f"127.0.0.1:{ports['grpc']}",
        f"http://127.0.0.1:{ports['http']}",
        f"http://127.0.0.1:{ports['metrics']}/metrics",
        log,
    )
    try:
        _wait_until_ready(server, timeout)
    except BaseException:
        server.stop()
        raise
    return server


@contextlib.contextmanager
def running(
    repository: Path, arguments: Sequence[str] = (), timeout: float = 120
) -> Iterator[LocalServer]:
    """A server for the length of a `with` block. Raises as `start`."""
    with tempfile.TemporaryDirectory() as folder:
        server = start(repository, Path(folder) / "tritonserver.log", arguments, timeout)
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def child(
    command: Sequence[str | Path], within_s: float = 30, **options: Any
) -> Iterator["subprocess.Popen[Any]"]:
    """Another program for the length of a `with` block, in a process group of its own.

    Ctrl-C and a closed terminal are for this program, which then ends the other one in order.

    Args:
        command: its command line.
        within_s: seconds that it may take to end, before it is killed with all it started.
        options: as subprocess.Popen takes them.
    """
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            end(process, within_s)


def run(command: Sequence[str | Path], **options: Any) -> int:
    """Run another program to its end as `child` does; its exit code."""
    with child(command, **options) as process:
        return process.wait()


def end(process: "subprocess.Popen[Any]", within_s: float) -> int:
    """End the leader of a process group by SIGTERM; after that time, or interrupted, by SIGKILL.

    What it leaves of its group is killed too.
    """
    try:
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(within_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP unwind the program, so that it stops what it started.

    The first of them counts: a terminal that is closed sends two. One that is ignored from the
    start, as under nohup, stays so.
    """
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]

    def unwind(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, unwind)


def _wait_until_ready(server: LocalServer, timeout: float) -> None:
    end = time.monotonic() + timeout
    while server.process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{server.http_url}/v2/health/ready", timeout=1):
                return
        except (OSError, http.client.HTTPException):  # Or somebody else's port.
            time.sleep(0.1)
    code = server.process.poll()
    what = f"was not ready after {timeout:.0f} s" if code is None else f"ended with code {code}"
    log = server.log.read_text(errors="replace")[-_LOG_TAIL:].strip()
    raise ServerUnavailable(f"tritonserver {what}; the end of its log:\n{log}")


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens at.

    They lie below those that Linux gives away by itself: a server that is started again finds
    them free.
    """
    lowest = int(_GIVEN_AWAY.read_text().split()[0])
    found: list[int] = []
    while len(found) < count:
        port = _random.randrange(_FIRST_PORT, lowest) if lowest > 2 * _FIRST_PORT else 0
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            port = int(one.getsockname()[1])
            found += [port] if port not in found else []
    return found
