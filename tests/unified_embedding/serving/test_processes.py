"""What is read from /proc, of processes that the test started."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from unified_embedding.serving import processes


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def becomes(pid: int, state: str) -> bool:
    end = time.monotonic() + 60
    while processes.state(pid) != state and time.monotonic() < end:
        time.sleep(0.01)
    return processes.state(pid) == state


def test_states_of_a_process(child: subprocess.Popen[bytes]) -> None:
    assert processes.state(child.pid) in ("R", "S", "D")
    child.send_signal(signal.SIGSTOP)
    assert becomes(child.pid, "T")
    child.kill()
    assert becomes(child.pid, "Z")
    assert processes.user(child.pid) == os.geteuid()
    child.wait()
    assert processes.state(child.pid) == ""
    assert processes.name(child.pid) == ""
    assert processes.user(child.pid) is None
    assert processes.parent(child.pid) == 0


def test_children_are_found_whichever_thread_started_them(
    child: subprocess.Popen[bytes],
) -> None:
    found: list[int] = []
    ended, done = threading.Event(), threading.Event()

    def start_another() -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            found.append(other.pid)
            done.set()
            ended.wait()

    thread = threading.Thread(target=start_another)
    thread.start()
    done.wait()
    children = processes.children(os.getpid())
    assert {child.pid, *found} <= set(children)
    assert processes.parent(child.pid) == os.getpid()
    assert child.pid in processes.everyone()
    ended.set()
    thread.join()


def test_a_program_without_a_stubs_name_is_none(child: subprocess.Popen[bytes]) -> None:
    assert not processes.is_stub(child.pid)
    assert (processes.model_of(child.pid), processes.region_of(child.pid)) == ("", "")


def test_it_listens_as_long_as_its_port_is_open(child: subprocess.Popen[bytes]) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert processes.listens(os.getpid())
        assert not processes.listens(child.pid)
