"""Deadlines of requests, and the engine's pace that all models of a server share."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unified_embedding import deadline


def test_a_request_without_a_deadline_is_never_late() -> None:
    deadline.check({}, needed=1e9)
    deadline.check({"crop": "0,0,1,1"}, needed=1e9)


def test_a_request_is_late_when_less_is_left_than_an_answer_takes() -> None:
    moment = f"{time.time() + 100:.3f}"
    deadline.check({"deadline": moment}, needed=90)
    with pytest.raises(deadline.Late, match=r"(99|100)\.\d+ s are left .* takes 110\.000 s now"):
        deadline.check({"deadline": moment}, needed=110)
    with pytest.raises(deadline.Late, match=r"passed 3\d\.\d+ s ago.*clock"):
        deadline.check({"deadline": str(time.time() - 30)}, needed=0)


@pytest.mark.parametrize("value", [12345678901, 12345678901.5, "12345678901", " 1.2e10 "])
def test_a_deadline_is_a_number_or_its_text(value: object) -> None:
    deadline.check({"deadline": value}, needed=0)


@pytest.mark.parametrize("value", ["soon", "", "nan", "inf", None, [1]])
def test_anything_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(deadline.Malformed, match="is not a moment"):
        deadline.check({"deadline": value}, needed=0)


def test_the_pace_follows_slow_batches_fast_and_fast_ones_slowly() -> None:
    pace = deadline.Pace()
    for _ in range(5):
        pace.add(0.1)
    assert pace.seconds > 0.09
    pace.add(0.001)
    assert pace.seconds > 0.08
    for _ in range(60):
        pace.add(0.001)
    assert pace.seconds < 0.002


def test_processes_of_one_server_share_the_engines_pace(tmp_path: Path) -> None:
    reader = deadline.SharedPace(os.getpid(), tmp_path)
    assert reader.read() == 0
    # Another process; this one is its parent, as tritonserver is of its models' processes.
    code = f"""
from pathlib import Path
from unified_embedding.deadline import SharedPace
SharedPace(folder=Path({str(tmp_path)!r})).write(100.0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    told = reader.read()
    assert 0 < told <= 100
    time.sleep(0.05)
    # The older it is, the less it counts.
    assert reader.read() < told
    assert deadline.SharedPace(os.getppid(), tmp_path).read() == 0
    reader.remove()
    reader.remove()
    assert reader.read() == 0
    assert list(tmp_path.iterdir()) == []
