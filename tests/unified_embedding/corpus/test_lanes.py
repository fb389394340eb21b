"""Shards are dealt out once each, mostly as neighbours."""

from hypothesis import given
from hypothesis import strategies as st

from unified_embedding.corpus.lanes import Lanes


@given(
    st.integers(0, 30),
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=40),
)
def test_every_shard_is_done_once_whoever_is_slow_or_lost(
    shards: int, workers: int, events: list[tuple[int, bool]]
) -> None:
    lanes = Lanes(range(100, 100 + shards), workers)
    done = []
    # At last, one worker does what is left.
    for worker, lost in [*events, *[(0, False)] * shards]:
        shard = lanes.take(worker % workers)
        if shard is not None and lost:
            lanes.put_back(worker % workers, shard)
        elif shard is not None:
            done.append(shard)
    assert sorted(done) == list(range(100, 100 + shards))
    assert len(lanes) == 0


def test_workers_go_through_neighbours_and_take_over_the_far_half() -> None:
    lanes = Lanes(range(12), 3)
    assert [lanes.take(0) for _ in range(4)] == [0, 1, 2, 3]
    assert lanes.take(1) == 4
    # Lanes 5, 6, 7 and 8, 9, 10, 11 are left: the first worker takes over 10 and 11.
    assert [lanes.take(0) for _ in range(2)] == [10, 11]
    assert [lanes.take(2) for _ in range(2)] == [8, 9]
