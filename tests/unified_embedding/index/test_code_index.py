"""The index against brute force, over every sequence of changes."""

import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.codes import asymmetric, hamming, pack
from unified_embedding.errors import CodeIndexError, IndexMismatch
from unified_embedding.index import Batch, CodeIndex, EngineWarning, Origin, Settings
from unified_embedding.index.groups import Groups

Codes = NDArray[np.uint8]
Make = Callable[..., Codes]
ORIGIN = Origin("0123456789ab", "openvino-fp32-aaaaaaaaaaaa")
OTHER_ENGINE = Origin("0123456789ab", "tensorrt-fp16-bbbbbbbbbbbb")


def truth(query: Codes, gallery: Codes, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Distances and rows of the k nearest, ties by row, by full sort."""
    distances = hamming(query, gallery)
    order = np.lexsort((np.broadcast_to(np.arange(len(gallery)), distances.shape), distances))
    rows = order[:, :k]
    return np.take_along_axis(distances, rows, axis=1), rows


def names(rows: Any) -> list[str]:
    return [f"r{row}" for row in rows]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_exact_search_equals_brute_force_with_ties_in_insertion_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, k: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    # Two bits per code: nearly every distance ties.
    codes = random.integers(0, 4, (rows, 2), dtype=np.uint8)
    query = random.integers(0, 4, (3, 2), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("ties")
    index = CodeIndex.create(folder / "i", ORIGIN, 16)
    half = rows // 2
    index.add(names(range(half)), codes[:half], ORIGIN)
    index.save()
    index.add(names(range(half, rows)), codes[half:], ORIGIN)
    distances, order = truth(query, codes, k)
    matches = index.search(query, ORIGIN, k=k)
    assert np.array_equal(matches.distances, distances)
    assert [matches.ids(row) for row in range(3)] == [names(row) for row in order]


class Changes(RuleBasedStateMachine):
    """Any order of add, delete, save and reopen leaves what a plain dictionary would hold."""

    folder: Path

    @initialize(kind=st.sampled_from(["flat", "ivf", "hnsw"]))
    def start(self, kind: Any) -> None:
        import tempfile

        self.home = tempfile.TemporaryDirectory()
        self.folder = Path(self.home.name) / "index"
        # With every cluster visited and a wide beam, IVF and HNSW of this size are exact.
        options = Settings(kind=kind, nprobe=1000, ef_search=500, ef_construction=200)
        self.index = CodeIndex.create(self.folder, ORIGIN, 16, settings=options)
        self.held: dict[str, Codes] = {}
        self.serial = 0

    def teardown(self) -> None:
        if hasattr(self, "home"):
            self.home.cleanup()

    @rule(count=st.integers(0, 30), seed=st.integers(0, 1000), values=st.sampled_from([2, 256]))
    def add(self, count: int, seed: int, values: int) -> None:
        codes = np.random.default_rng(seed).integers(0, values, (count, 2), dtype=np.uint8)
        ids = names(range(self.serial, self.serial + count))
        self.serial += count
        self.index.add(ids, codes, ORIGIN, metadata={"place": list(range(count))})
        self.held.update(zip(ids, codes, strict=True))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.integers(0, max(0, self.serial)), max_size=40, unique=True))
        there = [name for name in names(chosen) if name in self.held]
        assert self.index.delete(names(chosen)) == len(there)
        for name in there:
            del self.held[name]

    @rule(data=st.data())
    def delete_and_add_again(self, data: st.DataObject) -> None:
        if not self.held:
            return
        name = data.draw(st.sampled_from(sorted(self.held)))
        code = self.held.pop(name)
        assert self.index.delete([name]) == 1
        self.index.add([name], code[None], ORIGIN, metadata={"place": [0]})
        self.held[name] = code

    @rule(reopen=st.booleans())
    def save(self, reopen: bool) -> None:
        self.index.save()
        if reopen:
            self.index = CodeIndex.open(self.folder)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "index"):
            return
        assert len(self.index) == len(self.held)
        query = np.array([[0, 0], [170, 15]], dtype=np.uint8)
        matches = self.index.search(query, ORIGIN, k=7, exact=True)
        if not self.held:
            assert matches.rows.shape == (2, 0)
            return
        gallery, ids = np.array(list(self.held.values())), list(self.held)
        distances, rows = truth(query, gallery, 7)
        assert np.array_equal(matches.distances, distances)
        assert [matches.ids(row) for row in (0, 1)] == [[ids[i] for i in row] for row in rows]
        # IVF here visits every list, so it too must find the right distances.
        if self.index.header.settings.kind == "ivf":
            assert np.array_equal(self.index.search(query, ORIGIN, k=7).distances, distances)
        # HNSW holds equal codes once, and every living row of a code can be found through it.
        if self.index.header.settings.kind == "hnsw":
            code = next(iter(self.held.values()))
            alike = [one for one, other in self.held.items() if np.array_equal(code, other)]
            assert self.index.search(code[None], ORIGIN, k=len(alike)).ids(0) == alike


Changes.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestChanges = Changes.TestCase


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_kinds_find_nearly_all_and_answer_alike_each_time(
    tmp_path: Path, clustered: Make, kind: Any
) -> None:
    codes = clustered(3000)
    query = clustered(50, seed=0)
    options = Settings(kind=kind, nprobe=8, ef_search=64)
    batch = Batch(names(range(3000)), codes)
    first = CodeIndex.build(tmp_path / "a", [batch], ORIGIN, 256, settings=options)
    second = CodeIndex.build(tmp_path / "b", [batch], ORIGIN, 256, settings=options)
    distances, _ = truth(query, codes, 10)
    found = first.search(query, ORIGIN, k=10)
    assert (found.distances <= distances[:, -1:]).mean() >= 0.95
    assert np.array_equal(found.rows, second.search(query, ORIGIN, k=10).rows)
    # Deleting the first answers brings up others, and none of the deleted.
    gone = {name for row in range(50) for name in found.ids(row)[:5]}
    assert first.delete(gone) == len(gone)
    after = first.search(query, ORIGIN, k=10)
    kept = [row for row in range(3000) if f"r{row}" not in gone]
    distances, _ = truth(query, codes[kept], 10)
    assert not gone & {name for row in range(50) for name in after.ids(row)}
    assert (after.distances <= distances[:, -1:]).mean() >= 0.95


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("different", [1, 30])
def test_hnsw_finds_the_very_code_however_many_copies_there_are(
    tmp_path: Path, clustered: Make, share: float, different: int
) -> None:
    """Copies of one code (blank pictures) or of thirty (stock photos), among single ones."""
    rows = 3000
    random = np.random.default_rng(5)
    codes = clustered(rows)
    copy = random.random(rows) < share
    codes[copy] = codes[random.integers(0, different, int(copy.sum()))]
    batch = Batch(names(range(rows)), codes)
    index = CodeIndex.build(tmp_path / "i", [batch], ORIGIN, 256, settings=Settings(kind="hnsw"))
    index = CodeIndex.open(tmp_path / "i")
    query = codes[random.choice(rows, 500, replace=False)]
    found = index.search(query, ORIGIN, k=10)
    assert (found.distances[:, 0] == 0).mean() >= 0.99
    distances, order = truth(query, codes, 10)
    assert (found.distances <= distances[:, -1:]).mean() >= 0.95
    # Copies of the query come in insertion order, as the exact search tells them.
    exact = distances == 0
    assert np.array_equal(found.rows[exact], order[exact])
    # The first two thirds of all copies go; the rest come up, and new ones beside them.
    copies = np.flatnonzero((codes == codes[0]).all(axis=1))
    gone = copies[: 2 * len(copies) // 3]
    assert index.delete(names(gone)) == len(gone)
    index.add(["late"], codes[:1], ORIGIN)
    left = names(copies[len(gone) :])
    assert index.search(codes[:1], ORIGIN, k=len(copies)).ids(0)[: len(left) + 1] == [*left, "late"]
    assert index.search(codes[:1], ORIGIN, k=2).ids(0) == [*left, "late"][:2]
    index.save()
    assert index.search(codes[:1], ORIGIN, k=2).ids(0) == [*left, "late"][:2]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_groups_hold_the_rows_of_each_code(values: list[int], width: int) -> None:
    codes = np.array(values, dtype=np.uint8)[:, None].repeat(width, axis=1)
    groups = Groups.of(codes)
    want: dict[int, list[int]] = {}
    for row, value in enumerate(values):
        want.setdefault(value, []).append(row)
    starts = groups.starts
    got = [groups.rows[a:b].tolist() for a, b in pairwise(starts)]
    assert got == list(want.values())


def test_single_and_batched_queries_agree(tmp_path: Path, clustered: Make) -> None:
    codes = clustered(500)
    index = CodeIndex.build(tmp_path / "i", [Batch(names(range(500)), codes)], ORIGIN, 256)
    together = index.search(codes[:20], ORIGIN, k=5)
    for row in range(20):
        alone = index.search(codes[row : row + 1], ORIGIN, k=5)
        assert np.array_equal(alone.rows[0], together.rows[row])


def test_reranking_orders_by_the_float_query(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    gallery = random.normal(size=(400, 64)).astype(np.float32)
    query = (gallery[:6] + random.normal(size=(6, 64))).astype(np.float32)
    batch = Batch(names(range(400)), pack(gallery), embeddings=gallery)
    index = CodeIndex.build(tmp_path / "i", [batch], ORIGIN, 64, embeddings=True)

    unit = query / np.linalg.norm(query, axis=1, keepdims=True)
    want = asymmetric(unit, pack(gallery)) / np.sqrt(64)
    found = index.search(
        pack(query), ORIGIN, k=9, embedding=query, rerank="asymmetric", candidates=400
    )
    assert found.scores is not None
    best = np.sort(want, axis=1)[:, ::-1][:, :9]
    np.testing.assert_allclose(found.scores, best, rtol=0, atol=1e-6)

    stored = gallery.astype(np.float16).astype(np.float32)
    cosine = unit @ (stored / np.linalg.norm(stored, axis=1, keepdims=True)).T
    found = index.search(
        pack(query), ORIGIN, k=9, embedding=query, rerank="embedding", candidates=400
    )
    assert np.array_equal(found.rows, np.argsort(-cosine, axis=1, kind="stable")[:, :9])
    whole = index.search_embeddings(query, ORIGIN, k=9)
    assert np.array_equal(whole.rows, found.rows)
    assert np.array_equal(whole.distances, found.distances)
    # Few candidates: only they can come back, in the new order.
    few = index.search(pack(query), ORIGIN, k=3, embedding=query, rerank="embedding", candidates=5)
    nearest = index.search(pack(query), ORIGIN, k=5)
    assert all(set(a) <= set(b) for a, b in zip(few.rows, nearest.rows, strict=True))


def test_hits_carry_metadata_from_base_and_tail(tmp_path: Path) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 8)
    one = np.array([[1]], dtype=np.uint8)
    index.add(["a"], one, ORIGIN, metadata={"product": ["chair"], "price": [9.5]})
    index.save()
    index.add(["b"], one, ORIGIN, metadata=pa.table({"price": [1.0], "product": ["lamp"]}))
    hits = CodeIndex.search(index, one, ORIGIN, k=5).hits(0)
    assert [(hit.id, hit.distance, hit.score) for hit in hits] == [("a", 0, None), ("b", 0, None)]
    assert [hit.metadata for hit in hits] == [
        {"product": "chair", "price": 9.5},
        {"product": "lamp", "price": 1.0},
    ]
    assert "a" in index
    assert "b" in index
    assert "c" not in index


def test_rows_are_fetched_by_id_and_sampled(tmp_path: Path) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 8, embeddings=True)
    values = np.arange(1, 81, dtype=np.float32).reshape(10, 8)
    codes = np.arange(10, dtype=np.uint8)[:, None]
    index.add(names(range(6)), codes[:6], ORIGIN, embeddings=values[:6], metadata={"n": range(6)})
    index.save()
    rest = {"n": list(range(6, 10))}
    index.add(names(range(6, 10)), codes[6:], ORIGIN, embeddings=values[6:], metadata=rest)
    for row in (2, 8):
        stored = index.fetch(f"r{row}")
        assert (stored.id, stored.code.tolist(), stored.metadata) == (f"r{row}", [row], {"n": row})
        assert stored.embedding is not None
        assert stored.embedding.tolist() == values[row].tolist()
    index.delete(["r2", "r8"])
    with pytest.raises(CodeIndexError, match="'r8' is not in the index"):
        index.fetch("r8")
    assert [one.id for one in index.sample(3)] == ["r0", "r4", "r9"]
    assert len(index.sample(100)) == 8
    found = index.search_embeddings(values[:1], ORIGIN, k=20)
    assert sorted(found.ids(0)) == sorted(names([0, 1, 3, 4, 5, 6, 7, 9]))


def test_another_version_or_width_is_refused(tmp_path: Path) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 16)
    code = np.zeros((1, 2), dtype=np.uint8)
    stranger = Origin("ffffffffffff", ORIGIN.engine)
    with pytest.raises(IndexMismatch, match=r"version ffffffffffff.*0123456789ab.*back-fill"):
        index.search(code, stranger)
    with pytest.raises(IndexMismatch, match="ffffffffffff"):
        index.add(["a"], code, stranger)
    with pytest.raises(IndexMismatch, match=r"3 bytes.*2-byte"):
        index.search(np.zeros((1, 3), dtype=np.uint8), ORIGIN)
    with pytest.raises(CodeIndexError, match="int8"):
        index.search(code.astype(np.int8), ORIGIN)
    assert len(index) == 0


def test_another_engine_warns_once_with_the_measured_disagreement(tmp_path: Path) -> None:
    codes = np.zeros((4, 4), dtype=np.uint8)
    index = CodeIndex.build(tmp_path / "i", [Batch(names(range(4)), codes)], ORIGIN, 32)
    theirs = codes.copy()
    theirs[1, 2] = 0b101  # 2 of 2 x 32 bits
    share = index.compare_engine(OTHER_ENGINE, ["r0", "r1", "gone"], theirs[:3])
    assert share == 2 / 64
    with pytest.warns(EngineWarning, match=r"tensorrt-fp16.*openvino-fp32.*3\.12%"):
        index.search(codes[:1], OTHER_ENGINE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.search(codes[:1], OTHER_ENGINE)
        index.search(codes[:1], ORIGIN)
    unmeasured = Origin(ORIGIN.version, "openvino-int8-cccccccccccc")
    assert index.compare_engine(unmeasured, ["gone"], codes[:1]) is None
    with pytest.warns(EngineWarning, match="not measured"):
        index.search(codes[:1], unmeasured)


@pytest.mark.parametrize(
    ("ids", "codes", "extra", "message"),
    [
        (["a", "a"], 2, {}, "'a' is given twice"),
        (["a", ""], 2, {}, "not a non-empty text"),
        (["a"], 2, {}, "1 ids for 2 codes"),
        (["old"], 1, {}, "'old' is in the index; delete it first"),
        (["new"], 1, {}, "'new' is in the index; delete it first"),
        (["a"], 1, {"metadata": {"x": [1]}}, r"columns \['x'\]; the index has \[\]"),
        (["a"], 1, {"metadata": {"id": ["b"]}}, "column 'id'"),
        (["a"], 1, {"metadata": {"x": [1, 2]}}, "2 rows of metadata for 1 ids"),
        (["a"], 1, {"embeddings": np.zeros((1, 8))}, "stores no embeddings"),
    ],
)
def test_a_bad_addition_changes_nothing(
    tmp_path: Path, ids: list[str], codes: int, extra: dict[str, Any], message: str
) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 8)
    index.add(["old"], np.zeros((1, 1), dtype=np.uint8), ORIGIN)
    index.save()
    index.add(["new"], np.zeros((1, 1), dtype=np.uint8), ORIGIN)
    with pytest.raises(CodeIndexError, match=message):
        index.add(ids, np.zeros((codes, 1), dtype=np.uint8), ORIGIN, **extra)
    assert len(index) == 2


def test_texts_that_are_no_unicode_and_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 8)
    code = np.zeros((1, 1), dtype=np.uint8)
    with pytest.raises(CodeIndexError, match="not Unicode text"):
        index.add(["\ud800"], code, ORIGIN)
    with pytest.raises(CodeIndexError, match="not Unicode text"):
        index.add(["a"], code, ORIGIN, metadata={"x": ["\ud800"]})
    with pytest.raises(CodeIndexError, match="cannot be stored"):
        index.add(["a"], code, ORIGIN, metadata={"x": [2**70]})
    with pytest.raises(CodeIndexError, match="cannot be stored"):
        index.add(["a", "b"], code[[0, 0]], ORIGIN, metadata={"x": [1, "one"]})
    assert "\ud800" not in index
    assert index.delete(["\ud800"] * 1001) == 0
    long = "x" * 5000
    with pytest.raises(CodeIndexError) as refused:
        index.fetch(long)
    assert long[:100] not in str(refused.value)


def test_dictionaries_of_several_batches_are_stored_as_their_values(tmp_path: Path) -> None:
    batches = [
        Batch(
            [f"r{n}"],
            np.zeros((1, 1), np.uint8),
            pa.table({"x": pa.array([f"v{n}"]).dictionary_encode()}),
        )
        for n in range(3)
    ]
    index = CodeIndex.build(tmp_path / "i", batches, ORIGIN, 8)
    assert [row.metadata["x"] for row in index.sample(3)] == ["v0", "v1", "v2"]


@pytest.mark.skipif(not os.environ.get("RUN_SLOW"), reason="2 minutes and 9 GB; set RUN_SLOW=1")
def test_ids_of_more_than_2_gb(tmp_path: Path) -> None:
    rows = 115_000

    def ids(first: int, end: int) -> list[str]:
        return [f"{row * 7919 % rows:09d}".ljust(20_000, "x") for row in range(first, end)]

    batches = (
        Batch(ids(first, first + 5000), np.full((5000, 1), first % 251, np.uint8))
        for first in range(0, rows, 5000)
    )
    index = CodeIndex.build(tmp_path / "i", batches, ORIGIN, 8)
    gone = [name for row in range(0, rows, 50) for name in ids(row, row + 1)]
    assert index.delete(gone) == len(gone)
    index.add(["late"], np.zeros((1, 1), np.uint8), ORIGIN)
    index.save()
    index = CodeIndex.open(tmp_path / "i")
    assert len(index) == rows - len(gone) + 1
    for row in (1, 49, 51, rows - 1):
        [name] = ids(row, row + 1)
        assert index.fetch(name).code.tolist() == [row // 5000 * 5000 % 251]
    assert "late" in index
    assert gone[7] not in index


def test_embeddings_are_checked_at_the_border(tmp_path: Path) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 8, embeddings=True)
    code = np.zeros((1, 1), dtype=np.uint8)
    with pytest.raises(CodeIndexError, match="stores embeddings"):
        index.add(["a"], code, ORIGIN)
    with pytest.raises(CodeIndexError, match=r"\[1, 8\]"):
        index.add(["a"], code, ORIGIN, embeddings=np.zeros((1, 7)))
    with pytest.raises(CodeIndexError, match="NaN"):
        index.add(["a"], code, ORIGIN, embeddings=np.full((1, 8), np.nan))
    index.add(["a"], code, ORIGIN, embeddings=np.ones((1, 8)))
    with pytest.raises(CodeIndexError, match="needs the query's embedding"):
        index.search(code, ORIGIN, rerank="embedding")
    with pytest.raises(CodeIndexError, match="neither"):
        index.search(code, ORIGIN, embedding=np.ones((1, 8)), rerank="cosine")  # type: ignore[arg-type]
    with pytest.raises(CodeIndexError, match="at least 1"):
        index.search(code, ORIGIN, k=0)
    plain = CodeIndex.create(tmp_path / "plain", ORIGIN, 8)
    with pytest.raises(CodeIndexError, match="stores no embeddings"):
        plain.search(code, ORIGIN, embedding=np.ones((1, 8)), rerank="embedding")


@pytest.mark.parametrize("count", [5, 3000])
def test_ids_are_found_one_by_one_and_in_bulk(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(2)
    ids = [f"é{value:x}" for value in random.permutation(count)]
    codes = random.integers(0, 256, (count, 1), dtype=np.uint8)
    index = CodeIndex.build(tmp_path / "i", [Batch(ids, codes)], ORIGIN, 8)
    assert all(name in index for name in ids[:5])
    assert index.delete([*ids[: count // 2], "absent", "", "zzz"]) == count // 2
    assert len(index) == count - count // 2
    assert index.delete(ids) == count - count // 2


def test_what_changes_during_a_save_is_carried_over(tmp_path: Path) -> None:
    folder = tmp_path / "i"
    code = np.zeros((1, 1), dtype=np.uint8)
    index = CodeIndex.create(folder, ORIGIN, 8)
    index.add(["base", "doomed"], np.zeros((2, 1), dtype=np.uint8), ORIGIN)
    index.save()
    index.add(["tail", "doomed too"], np.zeros((2, 1), dtype=np.uint8), ORIGIN)
    index.delete(["base"])
    changed: list[bool] = []

    def meanwhile(step: str, _: int) -> None:
        if step == "sorting ids" and not changed:
            changed.append(True)
            index.add(["late"], code, ORIGIN)
            index.add(["late and gone"], code, ORIGIN)
            assert index.delete(["doomed", "doomed too", "late and gone"]) == 3

    index.save(progress=meanwhile)
    assert changed
    assert index.search(code, ORIGIN).ids(0) == ["tail", "late"]
    # The files hold the moment the save began; the changes since are in the next one.
    assert CodeIndex.open(folder).search(code, ORIGIN).ids(0) == ["doomed", "tail", "doomed too"]
    index.save()
    assert CodeIndex.open(folder).search(code, ORIGIN).ids(0) == ["tail", "late"]


def test_a_save_can_change_the_kind(tmp_path: Path, clustered: Make) -> None:
    codes = clustered(600)
    index = CodeIndex.build(tmp_path / "i", [Batch(names(range(600)), codes)], ORIGIN, 256)
    before = index.search(codes[:5], ORIGIN).rows
    index.save(Settings(kind="hnsw"))
    again = CodeIndex.open(tmp_path / "i", ef_search=300)
    assert again.header.settings.kind == "hnsw"
    assert again.header.settings.ef_search == 300
    assert np.array_equal(again.search(codes[:5], ORIGIN).rows, before)
