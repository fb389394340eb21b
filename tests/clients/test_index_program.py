"""clients/index.py: from a corpus to an index, and what it says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from unified_embedding.corpus.corpus import Corpus, Embedding

pytest.importorskip("faiss", reason="the extra `search` is not installed")
from unified_embedding.corpus.sources import Item
from unified_embedding.corpus.sources.item import FILE
from unified_embedding.corpus.store import Store
from unified_embedding.index import CodeIndex, Origin

VERSION = "0123456789ab"


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """10 pictures in 3 shards, one bad, one shard by another engine; finished, not complete."""
    items = [
        Item(f"p/{number}.jpg", FILE, f"/p/{number}.jpg", metadata=f'{{"n": {number}}}')
        for number in range(10)
    ]
    store = Store(str(tmp_path / "corpus")).within(VERSION)
    corpus = Corpus.begin(store, VERSION, 16, True, ["p"], items, shard_size=4)
    random = np.random.default_rng(0)
    for shard in range(3):
        engine = "engine-b" if shard == 2 else "engine-a"
        answers: list[tuple[Item, Embedding | str]] = []
        for item in corpus.items(shard):
            vector = random.normal(size=16).astype(np.float16)
            answers.append((item, Embedding(np.packbits(vector > 0), vector, VERSION, engine)))
        if shard == 0:
            answers[1] = (answers[1][0], "not an image")
        corpus.write_shard(shard, answers)
    return corpus


def newer(tmp_path: Path, embeddings: bool = True) -> Corpus:
    """Two pictures of the corpus above and three new ones, from another folder."""
    items = [Item(f"p/{n}.jpg", FILE, f"/q/{n}.jpg", metadata="{}") for n in (8, 9, 20, 21, 22)]
    store = Store(str(tmp_path / "newer")).within(VERSION)
    corpus = Corpus.begin(store, VERSION, 16, embeddings, ["q"], items, shard_size=4)
    random = np.random.default_rng(1)
    for shard in range(2):
        answers: list[tuple[Item, Embedding | str]] = []
        for item in corpus.items(shard):
            vector = random.normal(size=16).astype(np.float16)
            kept = vector if embeddings else None
            answers.append((item, Embedding(np.packbits(vector > 0), kept, VERSION, "engine-a")))
        corpus.write_shard(shard, answers)
    corpus.complete()
    return corpus


def test_add_brings_the_pictures_that_are_not_there_yet(
    root: Path, tmp_path: Path, corpus: Corpus
) -> None:
    corpus.complete()
    newer(tmp_path)
    out = str(tmp_path / "index")
    assert run(root, "build", str(tmp_path / "corpus"), "--out", out).returncode == 0
    before = CodeIndex.open(Path(out))
    added = run(root, "add", str(tmp_path / "newer"), "--index", out)
    assert added.returncode == 0, added.stderr
    assert "3 pictures added; 2 were in the index and stay as they are" in added.stdout
    after = CodeIndex.open(Path(out))
    old = before.sample(100)
    assert [row.id for row in after.sample(100)] == [
        *(row.id for row in old),
        "p/20.jpg",
        "p/21.jpg",
        "p/22.jpg",
    ]
    for row in old:
        stored = after.fetch(row.id)
        assert stored.code.tobytes() == row.code.tobytes()
        assert stored.metadata == row.metadata
    assert after.fetch("p/22.jpg").metadata == {"source": "/q/22.jpg", "metadata": "{}"}
    assert after.header.roots == (str(Path("p").resolve()), str(Path("q").resolve()))
    # Once more is no harm, and writes nothing.
    again = run(root, "add", str(tmp_path / "newer"), "--index", out)
    assert "0 pictures added; 5 were in the index" in again.stdout
    assert CodeIndex.open(Path(out)).header == after.header


def test_add_says_what_does_not_fit(root: Path, tmp_path: Path, corpus: Corpus) -> None:
    corpus.complete()
    newer(tmp_path, embeddings=False)
    out = str(tmp_path / "index")
    assert run(root, "build", str(tmp_path / "corpus"), "--out", out).returncode == 0
    for place, index, sentence in (
        (str(tmp_path / "newer"), out, "back-fill it with --embeddings"),
        (str(tmp_path / "no"), out, "holds no corpus of version"),
        (str(tmp_path / "newer"), str(tmp_path / "x"), "clients/index.py build"),
    ):
        done = run(root, "add", place, "--index", index)
        assert done.returncode == 2
        assert sentence in done.stderr
    assert len(CodeIndex.open(Path(out))) == 9


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(root / "clients" / "index.py"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_an_index_holds_the_corpus_row_by_row(
    root: Path, tmp_path: Path, corpus: Corpus, kind: str
) -> None:
    entries = corpus.complete()
    place, out = str(tmp_path / "corpus"), str(tmp_path / "index")
    built = run(root, "build", place, "--out", out, "--kind", kind)
    assert built.returncode == 0, built.stderr
    assert "several engines" in built.stderr
    index = CodeIndex.open(Path(out))
    assert index.header.origin == Origin(VERSION, "engine-a")
    assert index.header.settings.kind == kind
    rows = [row for table in corpus.tables(entries) for row in table.to_pylist()]
    assert [stored.id for stored in index.sample(100)] == [row["id"] for row in rows]
    for row in rows:
        stored = index.fetch(row["id"])
        assert stored.code.tobytes() == row["code"]
        assert stored.embedding is not None
        assert stored.embedding.tolist() == [float(value) for value in row["embedding"]]
        assert stored.metadata == {"source": row["source"], "metadata": row["metadata"]}
    told = run(root, "info", out)
    assert told.returncode == 0
    for part in ("9", kind, VERSION, "engine-a", "float16", str(Path("p").resolve())):
        assert part in told.stdout
    assert index.header.roots == (str(Path("p").resolve()),)


def test_a_build_says_when_pictures_will_not_be_shown(root: Path, tmp_path: Path) -> None:
    """The input was named relative to another folder than the index is built in."""
    picture = tmp_path / "photos" / "one.jpg"
    picture.parent.mkdir()
    picture.touch()
    store = Store(str(tmp_path / "corpus")).within(VERSION)
    item = Item("photos/one.jpg", FILE, str(picture))
    corpus = Corpus.begin(store, VERSION, 16, False, ["photos"], [item], shard_size=4)
    vector = Embedding(np.zeros(2, np.uint8), None, VERSION, "engine-a")
    corpus.write_shard(0, [(item, vector)])
    corpus.complete()
    arguments = ["build", str(tmp_path / "corpus"), "--out", str(tmp_path / "index")]
    built = run(root, *arguments)
    assert built.returncode == 0, built.stderr
    assert "one.jpg" in built.stderr
    assert "--root" in built.stderr
    program = [sys.executable, str(root / "clients" / "index.py"), *arguments]
    built = subprocess.run(program, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not built.stderr


def test_verify_names_a_damaged_file(root: Path, tmp_path: Path, corpus: Corpus) -> None:
    corpus.complete()
    out = tmp_path / "index"
    assert run(root, "build", str(tmp_path / "corpus"), "--out", str(out)).returncode == 0
    done = run(root, "verify", str(out))
    assert (done.returncode, "4 files" in done.stdout) == (0, True)
    path = out / "000001-embeddings.f16"
    path.write_bytes(path.read_bytes()[::-1])
    done = run(root, "verify", str(out))
    assert done.returncode == 2
    assert "000001-embeddings.f16 is damaged" in done.stderr
    assert "build the index again" in done.stderr


def test_export_writes_what_the_other_side_loads(
    root: Path, tmp_path: Path, corpus: Corpus
) -> None:
    corpus.complete()
    out = str(tmp_path / "index")
    assert run(root, "build", str(tmp_path / "corpus"), "--out", out).returncode == 0
    done = run(root, "export", out, "--to", "milvus", "--out", str(tmp_path / "milvus"))
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "milvus" / "codes-00000.parquet")
    # The back-fill's JSON is merged into the metadata, not quoted within it.
    assert table.column("metadata")[0].as_py() == '{"source": "/p/0.jpg", "n": 0}'
    done = run(root, "export", out, "--to", "postgres", "--out", str(tmp_path / "pg"))
    assert done.returncode == 0
    assert "psql -f schema.sql -f load.sql" in done.stdout


def test_mistakes_end_with_one_sentence(root: Path, tmp_path: Path, corpus: Corpus) -> None:
    place, out = str(tmp_path / "corpus"), str(tmp_path / "index")
    for arguments, sentence in (
        (["build", place, "--out", out], "is not complete; run the back-fill again"),
        (["build", str(tmp_path / "no"), "--out", out], "clients/backfill.py"),
        (["build", place, "--out", out, "--version", "f"], "no corpus of version f"),
        (["info", out], "clients/index.py build"),
        (["export", out, "--out", str(tmp_path / "x")], "clients/index.py build"),
    ):
        done = run(root, *arguments)
        assert done.returncode == 2
        assert sentence in done.stderr
    assert not (tmp_path / "x").exists()
