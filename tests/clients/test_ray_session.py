"""How a back-fill ends when Ray does not start, breaks down, or is still at work."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import psutil
import pytest
from kserve_peer import Peer, serving, slowly

pytest.importorskip("ray", reason="the extra `search` is not installed")
PATIENCE = 240.0
# The first starts fail as they do when Ray's own processes do not answer in time.
LATE = """
import functools, ray, runpy, sys
from unified_embedding.corpus import ray_session
failures = [None] * int(sys.argv[1])
def late(*arguments, **options):
    if failures:
        failures.pop()
        raise Exception("The current node timed out during startup.")
    return ray.init(*arguments, **options)
ray_session.start = functools.partial(ray_session.start, init=late)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


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


def test_the_reason_of_a_run_that_ends_early_is_told(command: list[str]) -> None:
    peer = Peer(respond=lambda number, request: (grpc.StatusCode.INTERNAL, "out of order"))
    with serving(peer):
        code, told = finish(*command, "--url", peer.url)
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


def worker_of(run: subprocess.Popen[str]) -> psutil.Process:
    """The process that reads and sends."""
    for child in psutil.Process(run.pid).children(recursive=True):
        # Ray writes the actor's class, and what it is at, over the command line.
        if " ".join(child.cmdline()).startswith("ray::Worker"):
            return child
    raise LookupError("no worker is up")


def test_a_lost_ray_is_told_and_the_same_command_continues(
    command: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    peer = Peer(respond=slowly(0.3))
    with serving(peer):
        command = [*command, "--url", peer.url, "--workers", "1", "--max-inflight", "1"]
        run = under_way(command, out)
        helpers = psutil.Process(run.pid).children(recursive=True)
        [raylet] = [child for child in helpers if child.name() == "raylet"]
        worker = worker_of(run)
        # Without the one, the other would go on to the end of the run; nobody replaces it now.
        raylet.kill()
        worker.kill()
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


def test_a_killed_worker_costs_its_shard_a_second_try_and_no_word(
    command: list[str], tmp_path: Path
) -> None:
    peer = Peer(respond=slowly(0.3))
    with serving(peer):
        command = [*command, "--url", peer.url, "--workers", "1", "--max-inflight", "1"]
        run = under_way(command, tmp_path / "out")
        worker_of(run).kill()
        peer.respond = lambda number, request: None
        _, told = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, told
    assert "40 rows in 10 shards" in told
    assert "raylet" not in told
    assert "Traceback" not in told


def test_a_shard_that_kills_every_worker_ends_the_run_in_words(
    command: list[str], tmp_path: Path
) -> None:
    ended = threading.Event()

    def kill(number: int, request: object) -> None:
        """End the worker that asks, each time it asks for the third shard."""
        if number >= 3 and not ended.is_set():
            worker_of(run).kill()

    peer = Peer()
    with serving(peer):
        command = [*command, "--url", peer.url, "--workers", "1", "--max-inflight", "1"]
        peer.respond = kill
        run = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
        _, told = run.communicate(timeout=PATIENCE)
        ended.set()
    assert run.returncode == 2, told
    assert "lost 6 processes at shard 2 (killed, or out of memory)" in told


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
