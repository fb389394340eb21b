"""A process that watches its tritonserver ends with it, however that one dies."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

# The child is started by a thread that ends at once, as Triton's are, and is deaf to SIGTERM.
# It holds the pipe open as long as it lives.
PROGRAM = """
import subprocess, sys, threading, time
open("/proc/self/comm", "w").write(sys.argv[1])
child = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from unified_embedding.serving.parent import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(600)
'''
thread = threading.Thread(target=subprocess.Popen, args=[[sys.executable, "-c", child]])
thread.start()
thread.join()
time.sleep(600)
"""
GUARD_S = 10


@pytest.fixture
def parent(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    name = getattr(request, "param", "tritonserver")
    with subprocess.Popen([sys.executable, "-c", PROGRAM, name], stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def child_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def pipe_closes(process: subprocess.Popen[bytes], within_s: float) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], within_s)[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_server_and_not_before(
    parent: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    child_of(parent)
    assert not pipe_closes(parent, within_s=1.5)
    parent.send_signal(number)
    assert pipe_closes(parent, GUARD_S)


@pytest.mark.parametrize("parent", ["python"], indirect=True)
def test_a_program_that_runs_a_model_itself_is_not_watched(
    parent: subprocess.Popen[bytes],
) -> None:
    child = child_of(parent)
    parent.kill()
    parent.wait()
    assert not pipe_closes(parent, within_s=1.5)
    os.kill(child, signal.SIGKILL)
    assert pipe_closes(parent, GUARD_S)
