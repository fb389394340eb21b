"""Conditions on metadata, against Python's own reading of them; and where chance begins."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.codes import hamming
from unified_embedding.errors import CodeIndexError
from unified_embedding.index import CodeIndex, Origin, Settings
from unified_embedding.index.chance import chance_distance

ORIGIN = Origin("0123456789ab", "openvino-fp32-aaaaaaaaaaaa")
ROWS = 150

# Each condition, and what Python says of a row for which every value is there.
CONDITIONS = {
    "price < 20": lambda r: r["price"] < 20,
    "20 >= price": lambda r: r["price"] <= 20,
    "10 <= price < 20.5": lambda r: 10 <= r["price"] < 20.5,
    "not price == 7": lambda r: r["price"] != 7,
    "price != -3 and (kind == 'sofa' or price > 30)": lambda r: (
        r["price"] != -3 and (r["kind"] == "sofa" or r["price"] > 30)
    ),
    "kind in ['sofa', 'lamp']": lambda r: r["kind"] in ("sofa", "lamp"),
    "kind not in ('sofa', 'lamp')": lambda r: r["kind"] not in ("sofa", "lamp"),
    "kind >= 'lamp'": lambda r: r["kind"] >= "lamp",
    "field('max price') > 5": lambda r: r["max price"] > 5,
    "sold": lambda r: r["sold"],
    "not sold and price < 25": lambda r: not r["sold"] and r["price"] < 25,
    "sold == False": lambda r: not r["sold"],
    "rare is None": lambda r: r["rare"] is None,
    "rare is not None": lambda r: r["rare"] is not None,
    "rare > 3": lambda r: r["rare"] is not None and r["rare"] > 3,
    # As in SQL, a comparison with nothing is neither true nor false.
    "not rare > 3": lambda r: r["rare"] is not None and r["rare"] <= 3,
    "rare > 3 or sold": lambda r: (r["rare"] is not None and r["rare"] > 3) or r["sold"],
    "id != 'r7'": lambda r: r["id"] != "r7",
}


def made(random: np.random.Generator, rows: range) -> list[dict[str, Any]]:
    return [
        {
            "price": int(random.integers(-5, 40)),
            "kind": str(random.choice(["sofa", "lamp", "chair"])),
            "max price": float(random.integers(0, 20)) / 2,
            "sold": bool(random.integers(0, 2)),
            "rare": None if random.random() < 0.6 else int(random.integers(0, 8)),
            "id": f"r{row}",
        }
        for row in rows
    ]


def columns(rows: list[dict[str, Any]], form: str) -> dict[str, Any]:
    """The metadata as columns, as a back-fill's JSON, or as its JSON from a CSV file."""
    said = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    if form == "columns":
        return {
            name: pa.array([row[name] for row in said]).cast(type)
            for name, type in (
                ("price", pa.int16()),
                ("kind", pa.string()),
                ("max price", pa.float16()),
                ("sold", pa.bool_()),
                ("rare", pa.uint64()),
            )
        }
    if form == "csv":
        said = [
            {k: v if isinstance(v, bool) else str(v) for k, v in row.items() if v is not None}
            for row in said
        ]
    return {"metadata": [json.dumps(row) for row in said]}


@dataclass(frozen=True)
class Filtered:
    index: CodeIndex
    codes: Any
    rows: list[dict[str, Any]]
    held: list[int]


@pytest.fixture(
    scope="module", params=[("flat", "columns"), ("flat", "csv"), ("ivf", "json"), ("hnsw", "json")]
)
def filtered(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Filtered:
    """A base, a tail, and deletions in both."""
    kind, form = request.param
    random = np.random.default_rng(0)
    codes = random.integers(0, 8, (ROWS, 2), dtype=np.uint8)
    rows = made(random, range(ROWS))
    folder = tmp_path_factory.mktemp("where") / "i"
    index = CodeIndex.create(folder, ORIGIN, 16, settings=Settings(kind=kind, nprobe=1))
    for part in (slice(0, 100), slice(100, ROWS)):
        ids = [row["id"] for row in rows[part]]
        index.add(ids, codes[part], ORIGIN, metadata=columns(rows[part], form))
        if part.start == 0:
            index.save()
    dead = set(random.choice(ROWS, 30, replace=False).tolist())
    index.delete(f"r{row}" for row in dead)
    return Filtered(index, codes, rows, [row for row in range(ROWS) if row not in dead])


@given(chosen=st.sampled_from(sorted(CONDITIONS)), k=st.integers(1, 200), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_filtered_search_equals_brute_force_over_the_rows_that_match(
    filtered: Filtered, chosen: str, k: int, seed: int
) -> None:
    query = np.random.default_rng(seed).integers(0, 8, (2, 2), dtype=np.uint8)
    held = [row for row in filtered.held if CONDITIONS[chosen](filtered.rows[row])]
    distances = hamming(query, filtered.codes[held])
    matches = filtered.index.search(query, ORIGIN, k=k, where=chosen)
    for number in range(2):
        order = np.lexsort((np.arange(len(held)), distances[number]))[:k]
        assert matches.ids(number) == [f"r{held[place]}" for place in order]
        assert matches.distances[number].tolist() == distances[number, order].tolist()


def test_reranking_and_floats_keep_to_the_condition(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    floats = random.normal(size=(60, 16)).astype(np.float32)
    codes = np.packbits(floats > 0, axis=1)
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 16, embeddings=True)
    ids = [f"r{row}" for row in range(60)]
    index.add(ids, codes, ORIGIN, metadata={"n": list(range(60))}, embeddings=floats)
    cosine = floats[7:] @ floats[0] / np.linalg.norm(floats[7:], axis=1)
    best = [f"r{7 + row}" for row in np.argsort(-cosine)[:5]]
    arguments: Any = {"k": 5, "where": "n >= 7"}
    assert index.search_embeddings(floats[:1], ORIGIN, **arguments).ids(0) == best
    again = index.search(
        codes[:1], ORIGIN, embedding=floats[:1], rerank="embedding", candidates=60, **arguments
    )
    assert again.ids(0) == best


def test_dates_compare_with_iso_texts(tmp_path: Path) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 16)
    days = pa.array([0, 1000, 20000], pa.date32())
    index.add(["a", "b", "c"], np.zeros((3, 2), np.uint8), ORIGIN, metadata={"day": days})
    query = np.zeros((1, 2), np.uint8)
    assert index.search(query, ORIGIN, where="day > '1971-01-01'").ids(0) == ["b", "c"]
    with pytest.raises(CodeIndexError, match="cannot be compared"):
        index.search(query, ORIGIN, where="day > 'soon'")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no condition"),
        ("price = 20", "is no condition"),
        ("price < 20 AND kind == 'x'", "is no condition"),
        ("price <", "write for instance"),
        ("prise < 20", "no row has 'prise'; there are kind, price, source"),
        ("prise is None", "no row has 'prise'"),
        ("kind < 20", "'kind' is nowhere a number"),
        ("price == 'cheap'", "'price' is nowhere a text"),
        ("price < kind", "'kind' cannot stand here"),
        ("1 < 2", "'1' cannot stand here"),
        ("price", "nowhere true or false"),
        ("__import__('os').system('true')", "cannot stand here"),
        ("price < (lambda: 3)()", "cannot stand here"),
        ("price < 2 ** 9 ** 9", "'2 ** 9 ** 9' cannot stand here"),
        ("price in []", "cannot stand here"),
        ("price in range(3)", "cannot stand here"),
        ("price is 3", "cannot stand here"),
        ("field(price) < 3", "cannot stand here"),
        ("price < b'x'", "cannot stand here"),
        ("price < None", "cannot stand here"),
        ("(" * 400 + "price" + ")" * 400, "price < 20 and"),
        ("not " * 240 + "price < 3 or 3", "cannot stand here"),
        ("price < \0 3", "price < 20 and"),
        ("price < 1" + "0" * 400, "cannot be compared"),
        ("x" * 1001, "at most 1000 characters, not 1001"),
    ],
)
def test_a_bad_condition_is_refused_in_words(tmp_path: Path, text: str, sentence: str) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 16)
    metadata = {"source": ["a"], "metadata": ['{"price": 3, "kind": "sofa"}']}
    index.add(["a"], np.zeros((1, 2), np.uint8), ORIGIN, metadata=metadata)
    with pytest.raises(CodeIndexError) as told:
        index.search(np.zeros((1, 2), np.uint8), ORIGIN, where=text)
    assert sentence in str(told.value)
    assert len(str(told.value)) < 400


def test_members_named_like_a_column_are_told_apart_and_no_json_has_none(tmp_path: Path) -> None:
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 16)
    said = ['{"source": "shop"}', "no JSON", '["list"]', None]
    metadata = {"source": ["/a", "/b", "/c", "/d"], "metadata": said}
    index.add(["a", "b", "c", "d"], np.zeros((4, 2), np.uint8), ORIGIN, metadata=metadata)
    query = np.zeros((1, 2), np.uint8)
    assert index.search(query, ORIGIN, where="source == '/b'").ids(0) == ["b"]
    assert index.search(query, ORIGIN, where="metadata.source == 'shop'").ids(0) == ["a"]
    assert index.search(query, ORIGIN, where="metadata.source is None").ids(0) == ["b", "c", "d"]
    assert len(CodeIndex.create(tmp_path / "empty", ORIGIN, 16).search(query, ORIGIN, where="x"))


def test_chance_begins_where_one_row_of_independent_codes_is_as_near(tmp_path: Path) -> None:
    """Codes of 64 independent bits, each repeated 20 times: the binomial is known."""
    random = np.random.default_rng(0)

    def codes(rows: int) -> Any:
        return np.packbits(np.repeat(random.integers(0, 2, (rows, 64)), 20, axis=1), axis=1)

    gallery, query = codes(700).astype(np.uint8), codes(700).astype(np.uint8)
    index = CodeIndex.create(tmp_path / "i", ORIGIN, 1280)
    index.add([f"r{row}" for row in range(700)], gallery, ORIGIN)
    begins = index.chance()
    assert begins is not None
    # One row in the mean, within the rounding of a binomial of 64 bits.
    assert 0.4 < (hamming(query, gallery) < begins).sum(axis=1).mean() < 2.5
    assert chance_distance(gallery[:9], 9) is None
    assert chance_distance(np.repeat(gallery[:1], 50, axis=0), 50) is None
    # The more rows, the nearer chance comes.
    assert chance_distance(gallery[:100], 10**6) < begins  # type: ignore[operator]
