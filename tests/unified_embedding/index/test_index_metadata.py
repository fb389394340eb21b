"""Whatever metadata holds, it comes back, and leaves as JSON that the strictest reader takes."""

import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.index import Batch, CodeIndex, Origin, facts
from unified_embedding.index.export import to_milvus, to_postgres

ORIGIN = Origin("0123456789ab", "openvino-fp32-aaaaaaaaaaaa")

# Also halves of surrogate pairs, which JSON can escape and Unicode has not.
TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\ud83d", "\ude00\ud83d", "\0", "\\u0000", "source", "id", "metadata"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXTS, values, max_size=4),
    max_leaves=12,
)


def strictly(text: str) -> Any:
    """RFC 8259 without its liberties, and what jsonb wants: no name twice, no NUL."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)

    text.encode("utf-8")
    value = json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    assert "\0" not in json.dumps(value, ensure_ascii=False)
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def cleaned(value: Any) -> Any:
    """What must come out, said in another way than the library does it."""
    if isinstance(value, float) and (math.isnan(value) or math.isinf(value)):
        return None
    if isinstance(value, str):
        joined = json.loads(json.dumps(value))  # escaped pairs become one character
        return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in joined)
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    if isinstance(value, dict):
        return {cleaned(name): cleaned(one) for name, one in value.items()}
    return value


def exported(index: CodeIndex, folder: Path) -> dict[str, Any]:
    """The metadata by id as the Parquet for Milvus holds it; the COPY file holds the same text."""
    rows = pa.concat_tables(map(pq.read_table, to_milvus(index, folder / "m"))).to_pylist()
    copied = b"".join(p.read_bytes() for p in to_postgres(index, folder / "p") if "copy" in p.name)
    for row in rows:
        assert row["metadata"].encode() in copied
    return {row["id"]: strictly(row["metadata"]) for row in rows}


@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=5), min_size=2, max_size=4))
@settings(max_examples=80, deadline=None)
def test_any_json_comes_back_and_leaves_as_strict_json(
    tmp_path_factory: pytest.TempPathFactory, said: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("json")
    ids = [f"r{row}" for row in range(len(said))]
    codes = np.zeros((len(said), 1), np.uint8)
    texts = [json.dumps(one) for one in said]  # as the back-fill's column `metadata` holds it
    metadata = [
        {"source": [f"/p/{one}"], "metadata": [text]} for one, text in zip(ids, texts, strict=True)
    ]
    first = Batch(ids[:1], codes[:1], metadata[0])
    index = CodeIndex.build(folder / "i", [first], ORIGIN, 8)
    for row in range(1, len(ids)):
        index.add(ids[row : row + 1], codes[:1], ORIGIN, metadata=metadata[row])
    for _ in range(2):
        assert [one.metadata["metadata"] for one in index.sample(10)] == texts
        got = exported(index, folder)
        for name, one in zip(ids, said, strict=True):
            want = cleaned(one)
            assert got[name].pop("source") == f"/p/{name}"
            # A member of the user's that has our name is told beside ours.
            theirs = got[name].pop("metadata.source", None)
            assert theirs == want.pop("source", None)
            assert got[name] == want
        index.save()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("not JSON", {"metadata": "not JSON"}),
        ("[1, NaN]", {"metadata": [1, None]}),
        ("1e999", {"metadata": None}),
        ("9" * 5000, {"metadata": "9" * 5000}),
        ("[" * 100_000, {"metadata": "[" * 100_000}),
        (
            '{"source": 1, "metadata.source": 2}',
            {"metadata.source": 1, "metadata.metadata.source": 2},
        ),
        ("", {"metadata": ""}),
        (None, {}),
        ({"nested": float("inf")}, {"metadata": {"nested": None}}),
    ],
)
def test_what_is_no_json_object_stays_under_its_columns_name(text: Any, want: Any) -> None:
    told = facts({"id": "a", "source": "/p", "metadata": text})
    assert told == {"source": "/p", **want}
    assert strictly(json.dumps(told, ensure_ascii=False)) == told


DAY, SECOND = datetime.date(2020, 2, 29), 1_582_934_400
# Year 10,000 and after, which Python has no object for; numpy says how ISO 8601 writes them.
COLUMNS: dict[str, tuple[Any, Any]] = {
    "date": (pa.array([18321], pa.date32()), "2020-02-29"),
    "late date": (pa.array([10_000_000], pa.date32()), "29349-01-26"),
    "time": (pa.array([SECOND], pa.timestamp("s")), "2020-02-29T00:00:00"),
    "late time": (pa.array([1 << 40], pa.timestamp("s")), "36812-02-20T00:36:16"),
    "late zoned": (pa.array([1 << 40], pa.timestamp("s", "Asia/Tokyo")), "36812-02-20T00:36:16Z"),
    "late in list": (pa.array([[1 << 40]], pa.list_(pa.timestamp("s"))), ["36812-02-20T00:36:16"]),
    "late in struct": (
        pa.StructArray.from_arrays([pa.array([10_000_000], pa.date32())], ["when"]),
        {"when": "29349-01-26"},
    ),
    "long": (pa.array([1 << 62], pa.duration("s")), f"{1 << 62} seconds"),
    "nan": (pa.array([math.nan]), None),
    "infinite": (pa.array([[math.inf]]), [None]),
    "half": (pa.array([0.5], pa.float32()), 0.5),
    "bytes": (pa.array([b"\xff\0"]), "/wA="),
    "money": (pa.array([decimal.Decimal("1.10")]), "1.10"),
    "nul": (pa.array(["a\0b"]), "a\ufffdb"),
    "none": (pa.array([None], pa.string()), None),
    "words": (pa.array(["x"]).dictionary_encode(), "x"),
}


def test_every_type_of_column_leaves_as_strict_json(tmp_path: Path) -> None:
    table = pa.table({name: column for name, (column, _) in COLUMNS.items()})
    want = {name: told for name, (_, told) in COLUMNS.items()}
    code = np.zeros((1, 1), np.uint8)
    index = CodeIndex.build(tmp_path / "i", [Batch(["base"], code, table)], ORIGIN, 8)
    index.add(["tail"], code, ORIGIN, metadata=table)
    for _ in range(2):
        assert exported(index, tmp_path) == {"base": want, "tail": want}
        hits = index.search(code, ORIGIN).hits(0)
        assert [hit.metadata["late date"] for hit in hits] == ["29349-01-26"] * 2
        index.save()
    assert exported(CodeIndex.open(tmp_path / "i"), tmp_path) == {"base": want, "tail": want}
