"""How a back-fill goes on and ends, in threads and on a Ray cluster: the same, and in words."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from kserve_peer import VERSION, Peer, serving, slowly

PATIENCE = 240.0
MEMORY = 100_000_000
WITHOUT_RAY = """
import runpy, sys
sys.modules["ray"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 files that the peer takes for pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        (folder / f"{number:02d}.jpg").write_bytes(b"picture %d" % number)
    return folder


def backfill(root: Path, pictures: Path, out: Path) -> list[str]:
    program = str(root / "clients" / "backfill.py")
    return [program, str(pictures), "--out", str(out), "--shard-size", "4"]


@pytest.fixture
def command(root: Path, pictures: Path, tmp_path: Path) -> list[str]:
    """A back-fill in 10 shards, without --url."""
    return backfill(root, pictures, tmp_path / "out")


@pytest.fixture(scope="module")
def undisturbed(
    root: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What one thread writes that nothing disturbs."""
    out = tmp_path_factory.mktemp("undisturbed")
    with serving(Peer()) as peer:
        code, told = finish(*backfill(root, pictures, out), "--url", peer.url)
    assert code == 0, told
    return contents(out)


def new_cluster() -> Any:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY}
    for _ in range(4):
        # Ray waits half a minute for its own processes, whatever else the machine does, and ends
        # with an Exception of no class of its own.
        with contextlib.suppress(Exception):
            return Cluster(initialize_head=True, head_node_args=head)
    return Cluster(initialize_head=True, head_node_args=head)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node for all tests that leave it whole: its start is slow."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = new_cluster()
        yield cluster
        cluster.shutdown()


@pytest.fixture(params=["threads", "ray"])
def where(request: pytest.FixtureRequest) -> list[str]:
    """The options that choose who does the shards."""
    return ["--ray", request.getfixturevalue("cluster").address] if request.param == "ray" else []


def finish(*command: str) -> tuple[int, str]:
    """Exit code and stderr; on stdout nothing is said."""
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert run.stdout == ""
    return run.returncode, run.stderr


def started(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)


def until(event: Callable[[], object], run: "subprocess.Popen[str]") -> None:
    """Wait for something that happens while `run` goes on."""
    deadline = time.monotonic() + PATIENCE
    while not event():
        if run.poll() is not None or time.monotonic() > deadline:
            run.kill()
            pytest.fail(f"it did not happen: {run.communicate()[1]}")
        time.sleep(0.05)


def shards(out: Path) -> list[Path]:
    return sorted(out.glob("*/manifest/*.json"))


def workers(cluster: Any) -> list[psutil.Process]:
    """The processes of all nodes that read and send."""
    found = []
    for node in cluster.list_all_nodes():
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        found += processes(raylet)
    return found


def processes(raylet: psutil.Process) -> list[psutil.Process]:
    """The workers of a node: Ray writes the actor's class over the command line."""
    try:
        children = raylet.children(recursive=True)
        return [one for one in children if " ".join(one.cmdline()).startswith("ray::_Actor")]
    except psutil.NoSuchProcess:
        return []


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


def test_the_reason_of_a_run_that_ends_early_is_told(command: list[str], where: list[str]) -> None:
    peer = Peer(respond=lambda number, request: (grpc.StatusCode.INTERNAL, "out of order"))
    with serving(peer):
        code, told = finish(*command, "--url", peer.url, *where)
    assert "answered INTERNAL: out of order; the same command continues" in told
    assert "before it was done" not in told
    assert code == 2


def test_a_cluster_that_is_not_there_is_named(command: list[str]) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with serving(Peer()) as peer:
        code, told = finish(*command, "--url", peer.url, "--ray", "127.0.0.1:1")
    assert "no Ray cluster answers at 127.0.0.1:1" in told
    assert code == 2


def test_ray_is_needed_for_a_cluster_only(command: list[str]) -> None:
    with serving(Peer()) as peer:
        command = ["-c", WITHOUT_RAY, *command, "--url", peer.url]
        code, told = finish(*command, "--ray", "auto")
        assert "--ray needs ray, which is not installed: pip install" in told
        assert code == 2
        code, told = finish(*command)
    assert code == 0, told


@pytest.mark.parametrize("program", ["backfill", "embed"])
def test_a_program_is_ready_without_the_slow_imports(program: str) -> None:
    slow = {"ray", "pyarrow.dataset", "pandas", "torch", "faiss", "scipy"}
    code = f"import sys, unified_embedding.cli.{program}; print(sorted({slow} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_a_lost_ray_is_told_and_the_same_command_continues(
    command: list[str], tmp_path: Path
) -> None:
    cluster = new_cluster()
    peer = Peer(respond=slowly(0.3))
    with serving(peer):
        command = [*command, "--url", peer.url, "--workers", "1", "--max-inflight", "1"]
        run = started([*command, "--ray", cluster.address])
        until(lambda: len(shards(tmp_path / "out")) >= 2, run)
        [worker] = workers(cluster)
        # Without the one, the other would go on to the end of the run; nobody replaces it now.
        psutil.Process(cluster.head_node.all_processes["raylet"][0].process.pid).kill()
        worker.kill()
        _, told = run.communicate(timeout=PATIENCE)
        cluster.shutdown()
        assert run.returncode not in (0, 130)
        assert "the same command continues from here" in told.splitlines()[-1]
        kept = {path: path.stat().st_mtime_ns for path in shards(tmp_path / "out")}
        assert kept
        peer.respond = lambda number, request: None
        code, told = finish(*command)
        assert code == 0, told
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert "before it was done" not in told


def test_a_killed_worker_costs_its_shard_a_second_try_and_no_word(
    command: list[str], tmp_path: Path, cluster: Any
) -> None:
    peer = Peer(respond=slowly(0.3))
    with serving(peer):
        command = [*command, "--url", peer.url, "--workers", "1", "--max-inflight", "1"]
        run = started([*command, "--ray", cluster.address])
        until(lambda: len(shards(tmp_path / "out")) >= 2, run)
        [worker] = workers(cluster)
        worker.kill()
        peer.respond = lambda number, request: None
        _, told = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, told
    assert "40 rows in 10 shards" in told
    assert "raylet" not in told
    assert "Traceback" not in told


def test_a_shard_that_kills_every_worker_ends_the_run_in_words(
    command: list[str], cluster: Any
) -> None:
    ended = threading.Event()

    def kill(number: int, request: object) -> None:
        """End the worker that asks, each time it asks for the third shard."""
        if number >= 3 and not ended.is_set():
            for worker in workers(cluster):
                worker.kill()

    peer = Peer(respond=kill)
    with serving(peer):
        command = [*command, "--url", peer.url, "--workers", "1", "--max-inflight", "1"]
        run = started([*command, "--ray", cluster.address])
        _, told = run.communicate(timeout=PATIENCE)
        ended.set()
    assert run.returncode == 2, told
    assert "lost 6 processes at shard 2 (killed, or out of memory)" in told


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_an_interruption_is_told_and_loses_no_answer(
    command: list[str],
    tmp_path: Path,
    where: list[str],
    kind: signal.Signals,
    undisturbed: dict[str, bytes],
) -> None:
    stuck, released = threading.Event(), threading.Event()

    def hold(number: int, request: object) -> None:
        """Answer two pictures of the third shard; the next one has to wait."""
        if number > 10:
            stuck.set()
            released.wait(PATIENCE)

    peer = Peer(respond=hold)
    with serving(peer):
        command = [*command, "--url", peer.url, "--batch", "1", "--max-inflight", "1", *where]
        run = started(command)
        until(stuck.is_set, run)
        helpers = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(kind)
        _, told = run.communicate(timeout=PATIENCE)
        released.set()
        assert run.returncode == 130, told
        assert told.splitlines()[-1:] == [
            "backfill: interrupted; the same command continues from here"
        ]
        assert "Traceback" not in told
        _, left = psutil.wait_procs(helpers, timeout=30)
        assert not left
        answered = [image for request in peer.requests[:10] for image in request.images]
        assert len(shards(tmp_path / "out")) == 2
        peer.requests.clear()
        peer.respond = lambda number, request: None
        code, told = finish(*command)
        assert code == 0, told
        sent = [image for request in peer.requests for image in request.images]
    assert sorted(sent + answered) == sorted(b"picture %d" % number for number in range(40))
    assert contents(tmp_path / "out") == undisturbed


def test_a_cluster_that_loses_a_node_half_way_ends_with_the_same_bytes(
    command: list[str], tmp_path: Path, cluster: Any, undisturbed: dict[str, bytes]
) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    released = threading.Event()

    def hold(number: int, request: object) -> None:
        """After a third of the pictures, wait until the second node is gone."""
        if number > 4:
            released.wait(PATIENCE)

    peer = Peer(respond=hold)
    with serving(peer):
        command += ["--url", peer.url, "--max-inflight", "12"]
        # More workers than the first node's core can hold: the second one has to take part.
        several = ["--workers", "12", "--timeout", f"{PATIENCE}"]
        run = started([*command, *several, "--ray", cluster.address])
        raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
        until(lambda: len(shards(tmp_path / "out")) >= 4 and processes(raylet), run)
        cluster.remove_node(second, allow_graceful=False)
        assert len(shards(tmp_path / "out")) < 10
        released.set()
        _, told = run.communicate(timeout=PATIENCE)
        assert run.returncode == 0, told
    assert contents(tmp_path / "out") == undisturbed
    assert os.listdir(tmp_path / "out") == [VERSION]


def test_many_threads_write_the_same_bytes(
    command: list[str], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    with serving(Peer()) as peer:
        command += ["--url", peer.url, "--max-inflight", "3", "--workers", "4"]
        code, told = finish(*command)
    assert code == 0, told
    assert "3 of 4 workers are used" in told
    assert peer.most_at_once <= 3
    assert contents(tmp_path / "out") == undisturbed
