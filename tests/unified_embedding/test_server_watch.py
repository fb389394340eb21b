"""What is read from a server's processes and from Triton's statistics."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("psutil", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

import psutil

from unified_embedding.client import StageStatistics
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.stages import Breakdown
from unified_embedding.serving import tritonserver

# A parent that listens, named as the launcher is, and a child named as a Python backend's stub.
PROGRAM = """
import socket, subprocess, sys, time
listener = socket.create_server(("127.0.0.1", 0))
burn = "import time\\nwhile time.process_time() < 0.5: pass\\nprint(1, flush=True)\\ntime.sleep(60)"
child = subprocess.Popen(
    [sys.executable, "-c", burn, "/repository/preprocess/1/model.py"], stdout=subprocess.PIPE
)
child.stdout.readline()
print(listener.getsockname()[1], flush=True)
time.sleep(60)
"""


@pytest.fixture
def server() -> Iterator[tuple[int, str]]:
    """Process id and address of a parent with a child that used half a second of CPU."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tritonserver.__name__], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        yield process.pid, f"127.0.0.1:{port}"
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()


def test_cpu_is_counted_by_the_part_a_process_plays(server: tuple[int, str]) -> None:
    pid, url = server
    tree = ProcessTree.listening_at(url)
    assert tree is not None
    usage = tree.usage()
    assert usage.processes == 2
    assert usage.cpu_s["preprocess"] > 0.4
    assert set(usage.cpu_s) == {"preprocess", "tritonserver"}
    assert usage.memory_mb > 5
    assert ProcessTree(pid).usage().cpu_since(usage)["preprocess"] < 0.4


def test_a_paused_tree_stands_still_until_it_is_resumed(server: tuple[int, str]) -> None:
    pid, _ = server
    tree, parent = ProcessTree(pid), psutil.Process(pid)
    processes = [parent, *parent.children()]
    tree.pause()
    # SIGSTOP takes effect when the last thread has seen it.
    end = time.monotonic() + 30
    while {process.status() for process in processes} != {psutil.STATUS_STOPPED}:
        assert time.monotonic() < end
        time.sleep(0.01)
    tree.resume()
    assert psutil.STATUS_STOPPED not in {process.status() for process in processes}


@pytest.mark.parametrize("url", ["example.org:8001", "127.0.0.1:1", "127.0.0.1"])
def test_processes_elsewhere_are_not_found(url: str) -> None:
    assert ProcessTree.listening_at(url) is None


def test_stages_add_up_to_what_the_client_saw() -> None:
    ms = 1_000_000
    before = {
        "embedder": StageStatistics(requests=10, queue_ns=99 * ms, inferences=10, executions=9)
    }
    after = {
        "preprocess": StageStatistics(
            requests=4, inferences=8, executions=2, queue_ns=4 * ms, infer_ns=8 * ms
        ),
        "embedder": StageStatistics(
            requests=14,
            inferences=18,
            executions=10,
            queue_ns=(99 + 12) * ms,
            input_ns=2 * ms,
            infer_ns=20 * ms,
            output_ns=2 * ms,
        ),
        "binarizer": StageStatistics(requests=4, inferences=8, executions=1, infer_ns=4 * ms),
        "unified_embedding": StageStatistics(requests=4, failures=1, total_ns=60 * ms),
    }
    found = Breakdown.between(before, after, client_mean_ms=17.5)
    assert [(stage.name, stage.mean_ms) for stage in found.stages] == [
        ("decode: queue", 1),
        ("decode", 2),
        ("engine: queue", 3),
        ("engine", 6),
        ("binarize: queue", 0),
        ("binarize", 1),
        ("hand-over between steps", 2),
        ("transport and client", 2.5),
    ]
    assert sum(stage.mean_ms for stage in found.stages) == 17.5
    assert found.mean_batch == {"preprocess": 4, "embedder": 8, "binarizer": 8}
    assert found.failures == {"unified_embedding": 1}
