"""Whatever happens to an index' files, it is told: no other error, and no wrong hit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.errors import CodeIndexError
from unified_embedding.index import Batch, CodeIndex, Origin, Settings, segments

ORIGIN = Origin("0123456789ab", "openvino-fp32-aaaaaaaaaaaa")
ROWS, DIM = 120, 64
KINDS = ("flat", "ivf", "hnsw")


@dataclass(frozen=True)
class Saved:
    """An index on disk, and what it answers."""

    folder: Path
    answers: list[Any]


def build(folder: Path, kind: Any) -> CodeIndex:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(ROWS, DIM)).astype(np.float32)
    embeddings[60:] = embeddings[random.integers(0, 20, ROWS - 60)]  # "hnsw" groups them
    batch = Batch(
        [f"r{row}" for row in range(ROWS)],
        np.packbits(embeddings > 0, axis=1),
        {"place": [f"shelf {row}" for row in range(ROWS)]},
        embeddings,
    )
    options = Settings(kind=kind)
    return CodeIndex.build(folder, [batch], ORIGIN, DIM, settings=options, embeddings=True)


def answers(folder: Path) -> list[Any]:
    """What somebody who opens the index gets to see."""
    index = CodeIndex.open(folder)
    queries = np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)
    found = index.search(np.packbits(queries > 0, axis=1), ORIGIN, k=7)
    cosine = index.search_embeddings(queries, ORIGIN, k=7)
    seen = [[vars(hit) for hit in one.hits(query)] for one in (found, cosine) for query in range(3)]
    there = [index.fetch(f"r{row}").metadata for row in range(0, ROWS, 17)]
    return [len(index), str(index.header.origin), seen, there, "absent" in index]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    indexes = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("damage") / kind
        build(folder, kind)
        indexes[kind] = Saved(folder, answers(folder))
    return indexes


def flip(data: bytearray, place: int, bit: int) -> bytes:
    data[place % len(data)] ^= 1 << bit
    return bytes(data)


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "flip": lambda data, place: flip(bytearray(data), place // 8, place % 8),
    "cut": lambda data, place: data[: place % len(data)],
    "more": lambda data, place: data + b"\0" * (1 + place % 9),
    "zeros": lambda data, place: (
        data[: place % len(data)]
        + b"\0" * len(data[place % len(data) :][:64])
        + data[place % len(data) :][64:]
    ),
}


@given(
    kind=st.sampled_from(KINDS),
    damage=st.sampled_from(sorted(DAMAGES)),
    number=st.integers(0, 20),
    place=st.integers(0, 1 << 20),
)
@settings(max_examples=300, deadline=None)
def test_any_damage_is_told_with_the_file_and_the_remedy(
    saved: dict[str, Saved],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    damage: str,
    number: int,
    place: int,
) -> None:
    folder = tmp_path_factory.mktemp("copy") / "i"
    shutil.copytree(saved[kind].folder, folder)
    files = sorted(path for path in folder.iterdir() if path.name != ".lock")
    path = files[number % len(files)]
    before = path.read_bytes()
    after = DAMAGES[damage](before, place)
    path.write_bytes(after)
    try:
        got, told = answers(folder), ""
    except CodeIndexError as error:
        got, told = [], str(error)
    if got:
        # Blanks may stand round the values of a header; nothing else is free.
        assert after == before or path.name == "header.json"
        assert got == saved[kind].answers
    else:
        assert path.name in told
        assert "build" in told


def test_files_of_two_generations_are_not_mixed(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    build(one, "flat")
    codes = np.zeros((ROWS, DIM // 8), dtype=np.uint8)
    ids = [f"r{row}" for row in range(ROWS)]
    CodeIndex.build(other, [Batch(ids, codes, {"place": ids})], ORIGIN, DIM)
    shutil.copy(other / "000001-codes.u8", one)
    with pytest.raises(CodeIndexError, match=r"codes\.u8 is damaged"):
        CodeIndex.open(one)


def as_format_1(folder: Path) -> None:
    """The header as it was before files had checksums."""
    path = folder / "header.json"
    raw = json.loads(path.read_text())
    for name in ("sha256", "files", "roots"):
        del raw[name]
    path.write_text(json.dumps({**raw, "format": 1}))


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_of_format_1_opens_and_a_save_brings_it_up_to_date(
    tmp_path: Path, kind: str
) -> None:
    build(tmp_path / "i", kind)
    want = answers(tmp_path / "i")
    as_format_1(tmp_path / "i")
    assert answers(tmp_path / "i") == want
    assert not CodeIndex.open(tmp_path / "i", check=True).header.files
    CodeIndex.open(tmp_path / "i").save()
    assert answers(tmp_path / "i") == want
    assert "codes.u8" in CodeIndex.open(tmp_path / "i").header.files


@pytest.mark.parametrize("row", [-1, ROWS, 1 << 40])
def test_a_row_that_is_not_there_is_named_even_without_checksums(tmp_path: Path, row: int) -> None:
    build(tmp_path / "i", "flat")
    as_format_1(tmp_path / "i")
    path = tmp_path / "i" / "000001-id-order.i64"
    order = np.fromfile(path, dtype=np.int64)
    order[ROWS // 2] = row  # the first that a search for an id looks at
    order.tofile(path)
    with pytest.raises(CodeIndexError, match=r"id-order.i64 is damaged .* build the index again"):
        CodeIndex.open(tmp_path / "i").fetch("r7")


def test_big_codes_are_checked_on_demand_and_never_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "i", "flat")
    path = tmp_path / "i" / "000001-codes.u8"
    path.write_bytes(flip(bytearray(path.read_bytes()), 99, 3))
    with pytest.raises(CodeIndexError, match=r"codes\.u8 is damaged"):
        CodeIndex.open(tmp_path / "i")
    monkeypatch.setattr(segments, "CHECKED_BYTES", 100)
    index = CodeIndex.open(tmp_path / "i")
    with pytest.raises(CodeIndexError, match=r"codes\.u8 is damaged"):
        CodeIndex.open(tmp_path / "i", check=True)
    index.delete(["r3"])
    with pytest.raises(CodeIndexError, match=r"codes\.u8 is damaged"):
        index.save()
    assert len(index) == ROWS - 1
    path.write_bytes(flip(bytearray(path.read_bytes()), 99, 3))
    index.save()
    assert len(CodeIndex.open(tmp_path / "i", check=True)) == ROWS - 1


Floats = NDArray[np.floating[Any]]


@pytest.mark.parametrize("value", [1e-320, 1e-42, 1e300])
@pytest.mark.parametrize("rerank", ["asymmetric", "embedding"])
def test_queries_of_any_size_have_the_scores_of_their_direction(
    tmp_path: Path, value: float, rerank: Any
) -> None:
    index = build(tmp_path / "i", "flat")
    direction = np.sign(np.random.default_rng(3).normal(size=(2, DIM)))
    code = np.packbits(direction > 0, axis=1)
    search = lambda query: index.search(code, ORIGIN, embedding=query, rerank=rerank)  # noqa: E731
    want, got = search(direction), search(direction * value)
    assert got.scores is not None
    assert want.scores is not None
    np.testing.assert_allclose(got.scores, want.scores, atol=1e-6)
    assert np.array_equal(got.rows, want.rows)
    whole = index.search_embeddings(direction * value, ORIGIN)
    assert np.isfinite(whole.scores).all()
    assert np.array_equal(whole.rows, index.search_embeddings(direction, ORIGIN).rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_queries_without_a_direction_are_refused(tmp_path: Path, value: float) -> None:
    index = build(tmp_path / "i", "flat")
    query = np.full((1, DIM), value)
    with pytest.raises(CodeIndexError, match="NaN or infinity, or is all zero"):
        index.search_embeddings(query, ORIGIN)
    code = np.zeros((1, DIM // 8), np.uint8)
    with pytest.raises(CodeIndexError, match="NaN or infinity, or is all zero"):
        index.search(code, ORIGIN, embedding=query, rerank="asymmetric")


@pytest.mark.parametrize(
    ("value", "message"), [(1e300, "beyond float16"), (1e-42, "all zero in float16")]
)
def test_embeddings_that_float16_cannot_hold_are_refused(
    tmp_path: Path, value: float, message: str
) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, DIM, embeddings=True)
    code = np.zeros((1, DIM // 8), np.uint8)
    with pytest.raises(CodeIndexError, match=message):
        index.add(["a"], code, ORIGIN, embeddings=np.full((1, DIM), value))


@pytest.mark.parametrize("kind", KINDS)
def test_no_queries_have_no_hits(tmp_path: Path, kind: str) -> None:
    index = build(tmp_path / "i", kind)
    index.add(
        ["late"],
        np.zeros((1, DIM // 8), np.uint8),
        ORIGIN,
        metadata={"place": ["x"]},
        embeddings=np.ones((1, DIM)),
    )
    codes, floats = np.empty((0, DIM // 8), np.uint8), np.empty((0, DIM), np.float32)
    for found in (
        index.search(codes, ORIGIN, k=5),
        index.search(codes, ORIGIN, k=5, exact=True),
        index.search(codes, ORIGIN, k=5, embedding=floats, rerank="asymmetric"),
        index.search_embeddings(floats, ORIGIN, k=5),
    ):
        assert len(found) == 0
        assert found.rows.shape == found.distances.shape == (0, 5)
