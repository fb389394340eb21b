"""Where a tritonserver of its own is installed, as in NVIDIA's image, nobody looks after it."""

import os
import re
import shlex
import signal
from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("typer", reason="the extra `client` is not installed")

from drills import MODELS, alive, files_of, ready, until
from programs import run_program

from unified_embedding.serving import processes
from unified_embedding.serving.local_server import start
from unified_embedding.serving.tritonserver import resolve

pytestmark = pytest.mark.e2e


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `tritonserver` on PATH: the embedded one, started by a script that is not ours."""
    command, environment, _ = resolve([], os.environ)
    lines = ["#!/bin/sh"]
    lines += [
        f"export {name}={shlex.quote(environment[name])}" for name in ("LD_LIBRARY_PATH", "PATH")
    ]
    lines += [f'exec {shlex.join(command)} "$@"']
    script = tmp_path / "bin" / "tritonserver"
    script.parent.mkdir()
    script.write_text("\n".join(lines))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("model", MODELS)
def test_a_dead_model_process_still_reads_ready_and_status_sees_it(
    model: str, repository: Path, root: Path, tmp_path: Path
) -> None:
    server = start(repository, tmp_path / "log", ["--exit-timeout-secs=2"])
    pid = server.process.pid
    regions = set(re.findall(r"/dev/shm/triton_\S+", Path(f"/proc/{pid}/maps").read_text()))
    stubs = processes.stubs(pid)
    try:
        # The launcher has become that server.
        assert processes.name(pid) == processes.SERVER
        before = run_program(root, "clients/status.py", "--url", server.grpc_url, "--pictures", "1")
        assert before.returncode == 0, before.stderr
        # One of preprocess' two processes: the other one goes on answering.
        stub = next(one for one in stubs if processes.model_of(one) == model)
        os.kill(stub, signal.SIGKILL)
        status = run_program(root, "clients/status.py", "--url", server.grpc_url, "--pictures", "1")
        assert (status.returncode, status.stdout) == (1, "")
        assert "down:" in status.stderr
        assert ready(server)
    finally:
        server.stop()
        until(lambda: not any(map(alive, stubs)), 5, "models' processes are left")
        # Nobody removes what the killed process had.
        for left in [*regions, *(f"/dev/shm/{name}" for name in files_of(pid))]:
            Path(left).unlink(missing_ok=True)
