"""Cached vectors: computed once, resumed, repaired, and never taken for another embedder's."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from unified_embedding.evaluation import features
from unified_embedding.evaluation.features import FeatureCache

PICTURES = [f"picture {number}".encode() for number in range(10)]
HASHES = [hashlib.sha256(picture).hexdigest() for picture in PICTURES]


class Counting:
    """An embedder whose vectors are picture hashes, and which counts its pictures."""

    def __init__(self, id: str | None = "embedder-a", fails_at: int | None = None) -> None:
        self.id = id
        self.facts: dict[str, Any] = {}
        self.seen: list[bytes] = []
        self.fails_at = fails_at

    def embed(self, images: Sequence[bytes]) -> np.ndarray:
        if self.fails_at is not None and len(self.seen) >= self.fails_at:
            raise KeyboardInterrupt
        self.seen += images
        rows = [np.frombuffer(hashlib.sha256(i).digest(), np.uint8) for i in images]
        return np.stack(rows).astype(np.float32)


EXPECTED = Counting().embed(PICTURES)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD", 4)


def vectors(folder: Path, embedder: Counting, hashes: Sequence[str] = HASHES) -> np.ndarray:
    cache = FeatureCache(folder, Console(quiet=True))
    return cache.vectors(embedder, hashes, lambda row: PICTURES[HASHES.index(hashes[row])], "")


def test_the_second_time_nothing_is_embedded(tmp_path: Path) -> None:
    assert np.array_equal(vectors(tmp_path, Counting()), EXPECTED)
    again = Counting()
    assert np.array_equal(vectors(tmp_path, again), EXPECTED)
    assert again.seen == []


def test_only_new_pictures_are_embedded_in_any_order(tmp_path: Path) -> None:
    vectors(tmp_path, Counting(), HASHES[:6])
    again = Counting()
    found = vectors(tmp_path, again, HASHES[::-1])
    assert np.array_equal(found, EXPECTED[::-1])
    assert sorted(again.seen) == sorted(PICTURES[6:])


def test_equal_files_are_embedded_once(tmp_path: Path) -> None:
    embedder = Counting()
    found = vectors(tmp_path, embedder, [HASHES[0], HASHES[1], HASHES[0]])
    assert np.array_equal(found, EXPECTED[[0, 1, 0]])
    assert len(embedder.seen) == 2


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        vectors(tmp_path, Counting(fails_at=8))
    again = Counting()
    assert np.array_equal(vectors(tmp_path, again), EXPECTED)
    assert again.seen == PICTURES[8:]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive"])
def test_a_damaged_shard_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    vectors(tmp_path, Counting())
    shard = sorted((tmp_path / "embedder-a").iterdir())[0]
    shard.write_bytes(damage)
    again = Counting()
    assert np.array_equal(vectors(tmp_path, again), EXPECTED)
    assert 0 < len(again.seen) <= 4


def test_another_embedder_and_a_forgotten_one_start_anew(tmp_path: Path) -> None:
    vectors(tmp_path, Counting())
    other = Counting("embedder-b")
    vectors(tmp_path, other)
    assert len(other.seen) == len(PICTURES)
    FeatureCache(tmp_path, Console(quiet=True)).forget(Counting())
    again, other = Counting(), Counting("embedder-b")
    vectors(tmp_path, again)
    vectors(tmp_path, other)
    assert len(again.seen) == len(PICTURES)
    assert other.seen == []


def test_a_server_is_asked_every_time(tmp_path: Path) -> None:
    for _ in range(2):
        server = Counting(id=None)
        assert np.array_equal(vectors(tmp_path, server), EXPECTED)
        assert len(server.seen) == len(PICTURES)
    assert list(tmp_path.iterdir()) == []
