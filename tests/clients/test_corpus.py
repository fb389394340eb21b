"""Shards, manifest and quarantine."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unified_embedding.corpus.corpus import MANIFEST, QUARANTINE, Corpus, Embedding, choose
from unified_embedding.corpus.sources import Item, PassedOver
from unified_embedding.corpus.sources.item import FILE
from unified_embedding.corpus.store import Store
from unified_embedding.errors import CorpusError, InputError

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


def finish(corpus: Corpus) -> None:
    for shard in range(corpus.header.shards):
        rows = [(one, answer(3) if shard else "not an image") for one in corpus.items(shard)]
        corpus.write_shard(shard, rows)


@pytest.mark.parametrize("harm", ["flipped", "cut", "deleted"])
@pytest.mark.parametrize("name", ["shards/00001.parquet", "bad/00000.parquet"])
def test_a_damaged_shard_is_seen_and_can_be_done_again(
    tmp_path: Path, name: str, harm: str
) -> None:
    corpus = begin(tmp_path / "a")
    finish(corpus)
    entries = corpus.complete()
    assert corpus.damaged(entries) == []
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-7] if harm == "cut" else data)
    if harm == "deleted":
        path.unlink()
    [damaged] = corpus.damaged(entries)
    assert f"/{damaged.shard:05d}.parquet" in name
    read = corpus.table if name.startswith("shards") else corpus.bad
    with pytest.raises(CorpusError, match=rf"{name} is .*; run the back-fill again"):
        read(damaged)
    corpus.forget(damaged)
    with pytest.raises(CorpusError, match="not complete"):
        corpus.require_complete()
    finish(corpus)
    assert corpus.complete() == entries


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"shard": 1}', "\0", "[" * 100_000])
def test_a_garbled_entry_is_a_shard_that_is_not_finished(tmp_path: Path, text: str) -> None:
    corpus = begin(tmp_path / "a")
    finish(corpus)
    manifest = tmp_path / "a" / "manifest"
    (manifest / "00001.json").write_text(text)
    for stray in ("notes.txt", "1.json", "00000.json.bak", "00099.json", "abcde.json"):
        (manifest / stray).write_text("what is this")
    assert list(corpus.finished()) == [0, 2]
    assert corpus.entry(1) is None
    with pytest.raises(CorpusError, match="2 of 3 shards are finished"):
        corpus.complete()


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_what_is_kept_of_a_shard_comes_back_until_the_corpus_is_complete(
    tmp_path: Path, precision: str, codes: bool
) -> None:
    items = [item(number) for number in range(3)]
    store, extra = Store(str(tmp_path)), {"codes": codes, "precision": precision}
    corpus = Corpus.begin(store, VERSION, 16, True, ["p"], items, 3, **extra)
    assert Corpus.open(store).header == corpus.header
    vector = np.linspace(-1, 1, 16).astype(precision)
    code = np.packbits(vector > 0)
    good = Embedding(code if codes else None, vector, VERSION, "engine-a")
    corpus.keep(0, [])
    assert corpus.partly() == {}
    corpus.keep(0, [(items[2], good), (items[0], "not an image")])
    assert corpus.partly() == {0: 2}
    assert corpus.finished() == {}
    kept = corpus.kept(0)
    again = kept.pop("p/2.jpg")
    assert kept == {"p/0.jpg": "not an image"}
    assert isinstance(again, Embedding)
    assert again.embedding is not None
    assert (again.embedding.dtype, again.embedding.tolist()) == (vector.dtype, vector.tolist())
    assert (again.code.tolist() if again.code is not None else None) == (
        code.tolist() if codes else None
    )
    assert (again.version, again.engine) == (VERSION, "engine-a")
    corpus.write_shard(0, [(one, good) for one in items])
    corpus.complete()
    assert corpus.partly() == {}
    names = ["id", "source", "metadata", *["code"] * codes, "embedding", "version", "engine"]
    assert pq.read_table(tmp_path / "shards" / "00000.parquet").column_names == names


def test_what_is_kept_counts_for_nothing_when_it_is_damaged(tmp_path: Path) -> None:
    corpus = begin(tmp_path)
    corpus.keep(1, [(one, answer(3)) for one in corpus.items(1)])
    [path] = (tmp_path / "partial").iterdir()
    data = path.read_bytes()
    at = data.index(b"\2\0\0\0\3\xfc") + 4  # The length of a code, and the code.
    for harmed in (data[:at] + b"\0" + data[at + 1 :], data[: len(data) // 2], b"", b"PAR1"):
        path.write_bytes(harmed)
        assert corpus.kept(1) == {}
    path.write_bytes(data)
    assert corpus.partly() == {1: 2}
    corpus.begin_anew(1)
    assert corpus.partly() == {}


def test_a_corpus_has_any_number_of_shards(tmp_path: Path) -> None:
    items = (Item(f"{number}", FILE, f"/{number}") for number in range(100_001))
    corpus = Corpus.begin(Store(str(tmp_path)), VERSION, 16, False, ["p"], items, 1)
    assert corpus.header.shards == 100_001
    written = (9_999, 10_000, 99_999, 100_000)
    for shard in reversed(written):
        [one] = corpus.items(shard)
        assert one.id == str(shard)
        corpus.write_shard(shard, [(one, answer(shard % 256))])
    assert (tmp_path / "shards" / "100000.parquet").exists()
    finished = corpus.finished()
    # In the order of their numbers, not of their names.
    assert tuple(finished) == written
    assert corpus.damaged(finished.values()) == []
    rows = [row for table in corpus.tables(finished.values()) for row in table["id"].to_pylist()]
    assert rows == [str(shard) for shard in written]
    with pytest.raises(CorpusError, match="4 of 100001 shards are finished"):
        corpus.complete()


def test_the_plan_is_read_by_rows_however_its_row_groups_lie(tmp_path: Path) -> None:
    """Earlier releases wrote a row group for each shard, without the last two columns."""
    corpus = begin(tmp_path / "a", images=5)
    plan = pq.read_table(tmp_path / "a" / "plan.parquet").drop(["member", "problem"])
    pq.write_table(plan, tmp_path / "a" / "plan.parquet", row_group_size=2)
    (tmp_path / "a" / "passed_over.json").unlink()
    for old in (Corpus.open(corpus.store), pickle.loads(pickle.dumps(corpus))):
        assert [one for shard in (0, 2, 1) for one in old.items(shard)] == [
            item(number) for number in (0, 1, 4, 2, 3)
        ]
        assert old.passed_over() == PassedOver()
    (tmp_path / "a" / "plan.parquet").write_bytes(b"PAR1 no plan PAR1")
    with pytest.raises(CorpusError, match=r"plan\.parquet is damaged"):
        Corpus.open(corpus.store).items(0)


def test_a_search_that_fails_leaves_no_corpus(tmp_path: Path) -> None:
    def items() -> object:
        yield item(0)
        raise InputError("planted")

    with pytest.raises(InputError, match="planted"):
        Corpus.begin(Store(str(tmp_path / "a")), VERSION, 16, True, ["p"], items(), 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_was_passed_over_stands_in_the_corpus(tmp_path: Path) -> None:
    passed = PassedOver()
    for number in range(200):
        passed.add("hidden", f"\udce9{number}")
    passed.add("other", "x", 3)
    store = Store(str(tmp_path))
    corpus = Corpus.begin(store, VERSION, 16, True, ["p"], [item(0)], 1, passed)
    kept = corpus.passed_over()
    assert kept.counts == {"hidden": 200, "other": 3}
    assert len(kept.names["hidden"]) == 100
    assert kept.sentences() == ["200 x hidden (\\xe90, \\xe91, \\xe92, ...)", "3 x other (x)"]


def test_digests_are_of_the_files(tmp_path: Path) -> None:
    corpus = begin(tmp_path / "a")
    finish(corpus)
    for entry in corpus.complete():
        for folder, digest in (("shards", entry.shard_sha256), ("bad", entry.bad_sha256)):
            path = tmp_path / "a" / folder / f"{entry.shard:05d}.parquet"
            told = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
            assert digest == told
    assert pa.types.is_string(pq.read_schema(tmp_path / "a" / QUARANTINE).field("reason").type)
