"""Searches while others add, delete and save; the monitor that watches them."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.errors import CodeIndexError
from unified_embedding.index import Batch, CodeIndex, Origin, RecallMonitor, Settings

Make = Callable[..., NDArray[np.uint8]]


def names(rows: Any) -> list[str]:
    return [f"r{row}" for row in rows]


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_searches_stay_right_while_others_write(
    tmp_path: Path, origin: Origin, clustered: Make, kind: Any
) -> None:
    codes = clustered(2000)
    options = Settings(kind=kind, nprobe=100)
    start = Batch(names(range(500)), codes[:500])
    index = CodeIndex.build(tmp_path / "i", [start], origin, 256, settings=options)
    added, deleted = [500], [0]
    stop, failures = threading.Event(), []

    def searcher(seed: int) -> None:
        random = np.random.default_rng(seed)
        while not stop.is_set():
            gone_before, there_before = deleted[0], added[0]
            row = int(random.integers(gone_before, there_before))
            matches = index.search(codes[row : row + 1], origin, k=20)
            found = [int(name[1:]) for name in matches.ids(0)]
            if any(name < gone_before for name in found):
                failures.append(f"a row deleted before the search came back: {found}")
            if row >= deleted[0] + 50 and row not in found and kind == "flat":
                failures.append(f"row {row} is there and was not found")
            if not np.array_equal(matches.distances[0], np.sort(matches.distances[0])):
                failures.append("distances are not in order")

    def saver() -> None:
        while not stop.is_set():
            index.save()

    threads = [threading.Thread(target=searcher, args=(seed,)) for seed in range(3)]
    threads.append(threading.Thread(target=saver))
    for thread in threads:
        thread.start()
    for first in range(500, 2000, 10):
        index.add(names(range(first, first + 10)), codes[first : first + 10], origin)
        added[0] = first + 10
        assert index.delete(names(range(first - 500, first - 490))) == 10
        deleted[0] = first - 490
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    index.save()
    again = CodeIndex.open(tmp_path / "i")
    assert len(index) == len(again) == 500
    everything = again.search(codes[:1], origin, k=500, exact=True).ids(0)
    assert sorted(everything) == sorted(names(range(1500, 2000)))


def test_a_search_leaves_the_callers_thread_setting(
    tmp_path: Path, origin: Origin, clustered: Make
) -> None:
    import faiss

    codes = clustered(100)
    index = CodeIndex.build(tmp_path / "i", [Batch(names(range(100)), codes)], origin, 256)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        index.search(codes[:1], origin)
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


def test_the_monitor_measures_the_recall_of_a_sample(
    tmp_path: Path, origin: Origin, clustered: Make
) -> None:
    codes = clustered(3000)
    options = Settings(kind="ivf", nprobe=1, lists=64)
    index = CodeIndex.build(
        tmp_path / "i", [Batch(names(range(3000)), codes)], origin, 256, settings=options
    )
    query = clustered(60, seed=3)
    index.monitor = RecallMonitor(every=2, backlog=1000)
    approximate = np.concatenate(
        [index.search(query[row : row + 1], origin).distances for row in range(60)]
    )
    index.monitor.flush()
    recall = index.monitor.recall()
    exact = index.search(query, origin, exact=True).distances
    want = (approximate <= exact[:, -1:])[::2].mean()
    assert recall.queries == 30
    assert recall.skipped == 0
    assert recall.mean == pytest.approx(want)
    assert recall.low <= recall.mean <= recall.high
    assert 0.05 < recall.mean < 0.999  # one list of 64 must miss something
    index.monitor.close()


def test_an_idle_monitor_knows_nothing_and_a_busy_one_skips(
    tmp_path: Path, origin: Origin, clustered: Make
) -> None:
    with pytest.raises(CodeIndexError, match="at least 1"):
        RecallMonitor(every=0)
    codes = clustered(200)
    index = CodeIndex.build(tmp_path / "i", [Batch(names(range(200)), codes)], origin, 256)
    monitor = index.monitor = RecallMonitor(every=1, backlog=1)
    assert np.isnan(monitor.recall().mean)
    index.search(codes, origin)
    monitor.flush()
    recall = monitor.recall()
    assert recall.queries + recall.skipped == 200
    assert recall.mean == 1.0
    monitor.close()
