"""How many pictures wait for an engine: counted, bounded, and forgotten when they are lost."""

import os
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding.serving import server_files
from unified_embedding.serving.backlog import Backlog

LIMIT = 16


class Time:
    """Seconds that pass while somebody sleeps, and what happens meanwhile."""

    now = 1000.0
    slept = 0

    def __init__(self) -> None:
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.02
        self.now += seconds
        self.slept += 1
        self.meanwhile()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def backlog(tmp_path: Path, time: Time) -> Backlog:
    made = Backlog("embedder", os.getpid(), tmp_path, time, time.sleep)
    made.begin(LIMIT)
    return made


def enter(backlog: Backlog, pictures: int) -> None:
    with backlog.place(pictures):
        pass


def take(backlog: Backlog, pictures: int, *, most: int = LIMIT, pace: float = 0.1) -> None:
    """The engine takes a batch and is done with it at once."""
    with backlog.taken(pictures, most, pace):
        pass


@pytest.mark.parametrize("pictures", [1, LIMIT])
def test_as_many_as_the_engine_takes_at_once_wait_for_nothing(
    backlog: Backlog, time: Time, pictures: int
) -> None:
    with backlog.taken(1, most=LIMIT, pace=0.1):
        for _ in range(LIMIT):
            enter(backlog, 1)
        assert time.slept == 0
        assert not backlog.crowded
        # The next one waits until the engine takes some; one of many pictures as well.
        time.meanwhile = lambda: take(backlog, LIMIT) if time.slept == 3 else None
        enter(backlog, pictures)
        assert time.slept == 3
        assert backlog.crowded
    time.now += 1
    assert not backlog.crowded


def test_a_place_is_given_back_when_nothing_is_handed_on(backlog: Backlog, time: Time) -> None:
    for _ in range(3 * LIMIT):
        with pytest.raises(ValueError, match="late"), backlog.place(1):
            raise ValueError("late")
    assert time.slept == 0
    for _ in range(LIMIT):
        enter(backlog, 1)
    assert time.slept == 0


def test_a_batch_that_took_all_there_was_ends_the_count_of_lost_ones(
    backlog: Backlog, time: Time
) -> None:
    for _ in range(LIMIT):
        enter(backlog, 1)
    # The callers of fourteen hung up, and Triton told the engine nothing of them.
    take(backlog, 2)
    for _ in range(LIMIT):
        enter(backlog, 1)
    assert time.slept == 0


def test_singles_taken_beside_a_large_request_do_not_end_its_count(
    backlog: Backlog, time: Time
) -> None:
    enter(backlog, 4)
    enter(backlog, 12)
    with backlog.taken(4, most=LIMIT - 1, pace=0.1):  # The twelve did not fit in.
        for _ in range(4):
            enter(backlog, 1)
        assert time.slept == 0
        enter(backlog, 1)
        assert time.slept > 0


def test_a_model_loaded_again_in_place_goes_on_counting(tmp_path: Path, time: Time) -> None:
    old, new = (Backlog("embedder", os.getpid(), tmp_path, time, time.sleep) for _ in range(2))
    old.begin(LIMIT)
    new.begin(LIMIT)
    old.remove()  # Triton ends the old copy last.
    with new.taken(1, most=LIMIT, pace=0.1):
        for _ in range(LIMIT):
            enter(old, 1)
        assert time.slept == 0
        enter(old, 1)
        assert time.slept > 0


@pytest.mark.parametrize("pace", [0.0, 0.04, 2.0])
def test_an_engine_at_work_is_waited_for_as_long_as_two_batches_take(
    backlog: Backlog, time: Time, pace: float
) -> None:
    with backlog.taken(1, most=LIMIT, pace=pace):
        for _ in range(LIMIT):
            enter(backlog, 1)
        # And again, as long as it works on the same one.
        for _ in range(3):
            began = time.now
            enter(backlog, 1)
            assert 0.25 + 2 * pace <= time.now - began < 0.25 + 2 * pace + 0.1
            for _ in range(LIMIT - 1):
                enter(backlog, 1)


def test_an_idle_engine_has_lost_what_it_does_not_take_and_locks_nobody_out(
    backlog: Backlog, time: Time
) -> None:
    """The callers of hundreds hung up, and Triton told the engine nothing of them."""
    take(backlog, 1, pace=2.0)
    began = time.now
    for _ in range(20 * LIMIT):
        enter(backlog, 1)
    assert time.slept > 0
    assert time.now - began < 20 * 0.05


def test_no_more_than_the_limit_is_ever_between_the_steps(tmp_path: Path) -> None:
    """Three threads hand over what one takes, as fast as they can."""
    backlog = Backlog("embedder", os.getpid(), tmp_path, clock=lambda: 0.0)
    backlog.begin(LIMIT)
    lock, waiting, most, total = threading.Lock(), 0, 0, 600

    def decode() -> None:
        nonlocal waiting, most
        for _ in range(total // 3):
            with backlog.place(1), lock:
                waiting += 1
                most = max(most, waiting)

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads:
        thread.start()
    taken = 0
    while taken < total:
        with lock:
            batch, waiting = min(waiting, 4), waiting - min(waiting, 4)
        taken += batch
        take(backlog, batch, most=0, pace=0.01)
    for thread in threads:
        thread.join()
    assert most <= LIMIT


def test_processes_of_one_server_share_the_count_of_each_engine(tmp_path: Path, time: Time) -> None:
    code = f"""
from pathlib import Path
from unified_embedding.serving.backlog import Backlog
backlog = Backlog("embedder", folder=Path({str(tmp_path)!r}), clock=lambda: {time.now})
backlog.begin({LIMIT})
with backlog.place({LIMIT}):
    pass
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.name.startswith(f"unified_embedding-{os.getpid()}-")
    for name, waits in (("another", False), ("embedder", True)):
        time.slept = 0
        enter(Backlog(name, os.getpid(), tmp_path, time, time.sleep), 1)
        assert (time.slept > 0) == waits
    Backlog("embedder", os.getpid(), tmp_path).remove()
    assert list(tmp_path.iterdir()) == []


def test_without_an_engine_that_counts_nothing_is_bounded(tmp_path: Path, time: Time) -> None:
    backlog = Backlog("embedder", os.getpid(), tmp_path, time, time.sleep)
    take(backlog, 1)
    backlog.remove()
    for _ in range(3):
        enter(backlog, LIMIT)
    assert time.slept == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shm")


number = st.integers(-(2**63), 2**63 - 1)


@given(
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda *told: struct.pack("qqqqdd", *told),
            number,
            number,
            number,
            number,
            st.floats(),
            st.floats(),
        ),
    )
)
def test_damage_holds_nobody_up_for_long(folder: Path, data: bytes) -> None:
    """Whoever may map the server's shared memory may write there."""
    server_files.path_of("backlog-embedder", os.getpid(), folder).write_bytes(data)
    time = Time()
    backlog = Backlog("embedder", os.getpid(), folder, time, time.sleep)
    enter(backlog, 1)
    take(backlog, 1)
    enter(backlog, 1)
    assert time.now - Time.now < 200
