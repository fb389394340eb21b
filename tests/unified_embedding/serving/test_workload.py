"""How many large requests the processes of one server decode at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unified_embedding.image import Limits
from unified_embedding.serving.workload import Busy, LargeRequests

LIMITS = Limits(max_request_pixels=1000)
SMALL, LARGE = 250, 251
HOLD = """
import os, sys, time
from pathlib import Path
from unified_embedding.image import Limits
from unified_embedding.serving.workload import LargeRequests
room = LargeRequests("m", 3, Limits(max_request_pixels=1000), int(sys.argv[1]), Path(sys.argv[2]))
with room.room_for(900):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path) -> subprocess.Popen[bytes]:
    """Another instance that has a large request in work."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(os.getpid()), str(folder)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_one_instance_is_always_left_to_small_requests(tmp_path: Path) -> None:
    third = LargeRequests("m", 3, LIMITS, os.getpid(), tmp_path)
    with third.room_for(LARGE):
        pass
    with hold(tmp_path) as first, hold(tmp_path) as second:
        with pytest.raises(Busy, match=r"costs 251 pixels.*decoding 2 of more than 250 already"):
            third.room_for(LARGE).__enter__()
        with third.room_for(SMALL):
            pass
        # A killed process holds nothing.
        first.send_signal(signal.SIGKILL)
        first.wait()
        with third.room_for(LARGE):
            pass
        second.kill()
    third.remove()
    assert list(tmp_path.iterdir()) == []


def test_room_is_given_back_when_the_decoding_fails(tmp_path: Path) -> None:
    with hold(tmp_path) as other:
        room = LargeRequests("m", 3, LIMITS, os.getpid(), tmp_path)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), room.room_for(LARGE):
                raise ZeroDivisionError
        other.kill()


def test_a_single_instance_does_large_requests_too(tmp_path: Path) -> None:
    with LargeRequests("m", 1, LIMITS, os.getpid(), tmp_path).room_for(LARGE):
        pass
