"""How fast a server works, who tells whom, and who is let in by it."""

import os
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding.errors import Late, Malformed
from unified_embedding.serving import server_files
from unified_embedding.serving.pace import Admission, Pace, SharedPace


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def within(seconds: float) -> dict[str, object]:
    return {"deadline": str(time.time() + seconds)}


def test_the_pace_follows_slow_batches_fast_and_fast_ones_slowly(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(5):
        pace.add(0.1)
    assert pace.now > 0.09
    pace.add(0.001)
    assert pace.now > 0.08
    for _ in range(60):
        pace.add(0.001)
    assert pace.now < 0.002


def test_a_slow_moment_is_forgotten_though_no_work_is_done(clock: Clock) -> None:
    pace = Pace(clock)
    pace.add(2.0)
    assert pace.now == 1.0
    for halves in range(1, 8):
        clock.now += 0.5
        assert pace.now == pytest.approx(0.5**halves)


def test_one_who_is_late_is_refused_while_others_are_let_in(clock: Clock) -> None:
    admission = Admission(clock)
    admission.check({}, needed=1e9)
    for _ in range(3):
        clock.now += 0.1
        admission.check(within(100), needed=90)
        with pytest.raises(Late, match=r"(99|100)\.\d+ s are left .* takes 110\.000 s now"):
            admission.check(within(100), needed=110)


def test_one_who_is_late_by_the_estimate_alone_is_the_probe_of_a_quarter_second(
    clock: Clock,
) -> None:
    admission = Admission(clock)
    admission.check({}, needed=0)
    let_in = 0
    for _ in range(1000):  # Ten seconds in which every estimate is wrong.
        clock.now += 0.01
        try:
            admission.check(within(1), needed=1e9)
            let_in += 1
        except Late:
            pass
    assert 35 <= let_in <= 40


def test_whoever_has_given_up_is_no_probe(clock: Clock) -> None:
    admission = Admission(clock)
    clock.now += 100
    with pytest.raises(Late, match="passed"):
        admission.check(within(-1), needed=0)
    with pytest.raises(Malformed):
        admission.check({"deadline": "soon"}, needed=0)


def test_a_stall_locks_impatient_callers_out_for_two_seconds_at_most(clock: Clock) -> None:
    """After a batch of 1.3 s nobody with a second to spare was ever let in again."""
    admission, pace = Admission(clock), Pace(clock)
    admission.check({}, needed=0)
    pace.add(1.3)
    stalled, let_in = clock.now, []
    while clock.now < stalled + 10:
        clock.now += 0.02
        try:
            admission.check(within(0.3), 2 * pace.now)
        except Late:
            continue
        pace.add(0.005)
        let_in.append(clock.now - stalled)
    assert let_in[0] <= 0.3
    # And from then on not the probes alone.
    assert sum(moment > 2 for moment in let_in) > 390


def test_processes_of_one_server_share_the_pace_of_each_engine(tmp_path: Path) -> None:
    reader = SharedPace("embedder", os.getpid(), tmp_path)
    assert reader.read() == 0
    # Another process; this one is its parent, as tritonserver is of its models' processes.
    code = f"""
from pathlib import Path
from unified_embedding.serving.pace import SharedPace
SharedPace("embedder", folder=Path({str(tmp_path)!r})).write(50.0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    told = reader.read()
    assert 0 < told <= 50
    time.sleep(0.05)
    # The older it is, the less it counts.
    assert reader.read() < told
    assert SharedPace("another", os.getpid(), tmp_path).read() == 0
    assert SharedPace("embedder", os.getppid(), tmp_path).read() == 0
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.name.startswith(f"unified_embedding-{os.getpid()}-")
    reader.remove()
    reader.remove()
    assert reader.read() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shm")


def write_raw(folder: Path, data: bytes) -> SharedPace:
    server_files.path_of("pace-embedder", os.getpid(), folder).write_bytes(data)
    return SharedPace("embedder", os.getpid(), folder)


@given(
    st.one_of(
        st.binary(max_size=40), st.builds(struct.pack, st.just("dd"), st.floats(), st.floats())
    )
)
def test_whatever_stands_in_the_shared_memory_is_read_as_a_sane_pace(
    folder: Path, data: bytes
) -> None:
    assert 0 <= write_raw(folder, data).read() <= 60


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1.0, 60.1, 1e300])
@pytest.mark.parametrize("ahead", [0.0, 1e9, float("nan"), float("-inf")])
def test_an_infinite_pace_refuses_nobody(folder: Path, seconds: float, ahead: float) -> None:
    written = struct.pack("dd", seconds, time.monotonic() + ahead)
    assert write_raw(folder, written).read() == 0


def test_a_pace_told_in_the_future_counts_for_nothing(folder: Path) -> None:
    assert write_raw(folder, struct.pack("dd", 1.0, time.monotonic() + 1e6)).read() == 0


def test_what_is_no_file_of_ours_is_neither_read_nor_written(tmp_path: Path) -> None:
    pace = SharedPace("embedder", os.getpid(), tmp_path)
    path = server_files.path_of("pace-embedder", os.getpid(), tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    pace.write(1.0)
    assert pace.read() == 0
    assert victim.read_bytes() == b"precious"
    path.unlink()
    os.mkfifo(path)
    pace.write(1.0)
    assert pace.read() == 0
