"""Shards, manifest and quarantine."""

from pathlib import Path

import numpy as np
import pytest
from _corpus import MANIFEST, QUARANTINE, Corpus, CorpusError, Embedding, choose

from unified_embedding.corpus.sources import Item
from unified_embedding.corpus.sources.item import FILE
from unified_embedding.corpus.store import Store

VERSION = "0123456789ab"


def item(number: int) -> Item:
    return Item(f"p/{number}.jpg", FILE, f"/p/{number}.jpg", metadata=f'{{"n": {number}}}')


def answer(number: int, version: str = VERSION) -> Embedding:
    code = np.array([number, 255 - number], dtype=np.uint8)
    return Embedding(code, np.full(16, number, np.float16), version, "engine-a")


def begin(folder: Path, images: int = 5, version: str = VERSION) -> Corpus:
    items = [item(number) for number in range(images)]
    return Corpus.begin(Store(str(folder)), version, 16, True, ["p"], items, shard_size=2)


def test_a_corpus_comes_back_as_it_was_written(tmp_path: Path) -> None:
    corpus = Corpus.open(begin(tmp_path / "a").store)
    assert corpus.header.shards == 3
    assert corpus.items(2) == [item(4)]
    corpus.write_shard(0, [(item(0), answer(0)), (item(1), "not an image")])
    corpus.write_shard(2, [(item(4), "empty")])
    assert corpus.entry(1) is None
    with pytest.raises(CorpusError, match="2 of 3 shards"):
        corpus.complete()
    with pytest.raises(CorpusError, match="not complete"):
        corpus.require_complete()
    corpus.write_shard(1, [(item(2), answer(2)), (item(3), answer(3))])
    entries = corpus.complete()
    assert [(entry.rows, entry.bad) for entry in entries] == [(1, 1), (2, 0), (0, 1)]
    rows = [row for table in corpus.tables(entries) for row in table.to_pylist()]
    assert [row["id"] for row in rows] == ["p/0.jpg", "p/2.jpg", "p/3.jpg"]
    assert rows[1] == {
        "id": "p/2.jpg",
        "source": "/p/2.jpg",
        "metadata": '{"n": 2}',
        "code": bytes([2, 253]),
        "embedding": [2.0] * 16,
        "version": VERSION,
        "engine": "engine-a",
    }
    bad = [corpus.bad(entries[shard]).to_pylist() for shard in (0, 2)]
    assert [row["reason"] for rows in bad for row in rows] == ["not an image", "empty"]


def test_the_same_answers_give_the_same_bytes(tmp_path: Path) -> None:
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        corpus = begin(tmp_path / name)
        for shard in order:
            corpus.write_shard(shard, [(one, answer(3)) for one in corpus.items(shard)])
        corpus.complete()
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert {str(path) for path in files} >= {MANIFEST, QUARANTINE, "shards/00002.parquet"}
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_a_shard_of_two_versions_is_not_written(tmp_path: Path) -> None:
    corpus = begin(tmp_path / "a")
    with pytest.raises(CorpusError, match="changed from version 0123456789ab to ffffffffffff"):
        corpus.write_shard(0, [(item(0), answer(0)), (item(1), answer(1, "ffffffffffff"))])
    assert corpus.finished() == {}
    assert not (tmp_path / "a" / "shards").exists()


def test_a_corpus_is_chosen_by_version(tmp_path: Path) -> None:
    out = Store(str(tmp_path))
    with pytest.raises(CorpusError, match="is not a corpus"):
        choose(out)
    begin(tmp_path / VERSION)
    assert choose(out).header.version == VERSION
    assert choose(out.within(VERSION)).header.version == VERSION
    begin(tmp_path / "ffffffffffff", version="ffffffffffff")
    with pytest.raises(CorpusError, match=r"versions 0123456789ab, ffffffffffff; choose"):
        choose(out)
    assert choose(out, "ffffffffffff").header.version == "ffffffffffff"
    with pytest.raises(CorpusError, match="no corpus of version 999"):
        choose(out, "999")
    (tmp_path / VERSION / "corpus.json").write_text("{")
    with pytest.raises(CorpusError, match="damaged"):
        choose(out, VERSION)
