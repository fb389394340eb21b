"""How a back-fill ends when Ray does not start, breaks down, or is still at work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest
from kserve_peer import Peer, serving, slowly

pytest.importorskip("ray", reason="the extra `search` is not installed")
PATIENCE = 240.0
RUN = """
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Ray Data reads blocks on a thread of its own. Here that thread goes on using Ray for some seconds
# after the first block has ended the run, as it may on a busy machine.
BUSY = f"""
import os, runpy, sys, threading, time
os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
from ray._private.worker import Worker
original, seconds, calls = Worker.get_objects, float(sys.argv[1]), []
def get_objects(self, refs, *rest, **options):
    if threading.current_thread().name == "iter_threaded":
        calls.append(refs)
        end = time.monotonic() + seconds
        while len(calls) > 1 and time.monotonic() < end:
            self.core_worker.wait(refs, 1, 0, False)
    return original(self, refs, *rest, **options)
Worker.get_objects = get_objects
{RUN}"""
# The first starts fail as they do when a raylet does not answer in time: head processes are up.
LATE = f"""
import os, runpy, sys
os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
from ray._private.node import Node
original, failures = Node.start_ray_processes, [None] * int(sys.argv[1])
def start_ray_processes(self):
    original(self)
    if failures:
        failures.pop()
        raise Exception("The current node timed out during startup.")
Node.start_ray_processes = start_ray_processes
{RUN}"""


@pytest.fixture
def command(root: Path, tmp_path: Path) -> list[str]:
    """A back-fill of 40 files in 10 shards, without --url."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.jpg").write_bytes(b"picture %d" % number)
    program = str(root / "clients" / "backfill.py")
    return [program, str(folder), "--out", str(tmp_path / "out"), "--shard-size", "4"]


def finish(*command: str, **environment: str) -> tuple[int, str]:
    """Exit code and stderr."""
    run = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return run.returncode, run.stderr


@pytest.mark.parametrize("seconds", ["3", "30"], ids=["ends soon", "goes on"])
def test_a_thread_of_ray_that_is_still_at_work_does_not_swallow_the_reason(
    command: list[str], seconds: str
) -> None:
    peer = Peer(respond=lambda number, request: (grpc.StatusCode.INTERNAL, "out of order"))
    with serving(peer):
        code, told = finish("-c", BUSY, seconds, *command, "--url", peer.url)
    assert "answered INTERNAL: out of order; the same command continues" in told
    assert "before it was done" not in told
    assert code == 2


def test_a_ray_that_cannot_start_is_told_with_its_logs(command: list[str]) -> None:
    with serving(Peer()) as peer:
        command = [*command, "--url", peer.url]
        code, told = finish(*command, RAY_TMPDIR="/dev/null/nowhere")
        assert "backfill: Ray did not start" in told
        assert "/dev/null/nowhere/ray/session_latest/logs" in told
        assert code == 2
        code, told = finish(*command, "--ray", "127.0.0.1:1")
        assert "no Ray cluster answers at 127.0.0.1:1" in told
        assert code == 2


def test_a_start_that_took_too_long_is_tried_again(command: list[str]) -> None:
    with serving(Peer()) as peer:
        code, told = finish("-c", LATE, "3", *command, "--url", peer.url)
        assert "Ray did not start (The current node timed out during startup.)" in told
        assert code == 2
        code, told = finish("-c", LATE, "1", *command, "--url", peer.url)
    assert code == 0, told
    assert "40 rows in 10 shards" in told


def under_way(command: list[str], out: Path) -> subprocess.Popen[str]:
    """A back-fill that has finished two shards."""
    run = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while len(list(out.glob("*/manifest/*.json"))) < 2:
        if run.poll() is not None or time.monotonic() > deadline:
            run.kill()
            pytest.fail(f"no shard in time: {run.communicate()[1]}")
        time.sleep(0.05)
    return run


def test_a_lost_process_of_ray_is_told_and_the_same_command_continues(
    command: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    peer = Peer(respond=slowly(0.3))
    with serving(peer):
        command = [*command, "--url", peer.url, "--workers", "1", "--max-inflight", "1"]
        run = under_way(command, out)
        helpers = psutil.Process(run.pid).children(recursive=True)
        [raylet] = [child for child in helpers if child.name() == "raylet"]
        raylet.kill()
        _, told = run.communicate(timeout=PATIENCE)
        _, left = psutil.wait_procs(helpers, timeout=3)
        for process in left:
            process.kill()
        assert run.returncode not in (0, 130)
        assert "the same command continues from here" in told.splitlines()[-1]
        kept = {path: path.stat().st_mtime_ns for path in out.glob("*/manifest/*.json")}
        assert kept
        peer.respond = lambda number, request: None
        code, told = finish(*command)
        assert code == 0, told
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert "before it was done" not in told


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_an_interruption_is_told_and_leaves_no_process(
    command: list[str], tmp_path: Path, kind: signal.Signals
) -> None:
    with serving(Peer(respond=slowly(0.3))) as peer:
        command = [*command, "--url", peer.url, "--workers", "1", "--max-inflight", "1"]
        run = under_way(command, tmp_path / "out")
        helpers = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(kind)
        _, told = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130
    assert "interrupted; the same command continues from here" in told
    _, left = psutil.wait_procs(helpers, timeout=30)
    assert not left
