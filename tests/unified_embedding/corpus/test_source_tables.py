"""Metadata beside pictures: CSV, JSON lines and Parquet."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import searched


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `in` with a0.jpg, a1.jpg and train/a2.jpg."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "train").mkdir(parents=True)
    for name in ("a0.jpg", "a1.jpg", "train/a2.jpg"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    return tmp_path / "in"


def facts() -> tuple[dict[str, object], list[str]]:
    found, passed = searched("in")
    assert [data for data, _ in found.values()] == [b"a0.jpg", b"a1.jpg", b"train/a2.jpg"]
    return {name.removeprefix("in/"): said for name, (_, said) in found.items() if said}, [*passed]


@pytest.mark.parametrize(
    ("table", "said", "told"),
    [
        (b"file_name,title\na0.jpg,Chair, red\na1.jpg,Table\n", {"a1.jpg": {"title": "Table"}}, 1),
        (b"file_name,title,n\na0.jpg,Chair\n", {"a0.jpg": {"title": "Chair"}}, 1),
        (b"file_name,source,id\na0.jpg,s,i\n", {"a0.jpg": {"source": "s", "id": "i"}}, 0),
        (b"file_name,t\r\na0.jpg,caf\xe9\r\n", {"a0.jpg": {"t": "café"}}, 1),
        (b'file_name,t\n./a0.jpg,"a\nb"\n', {"a0.jpg": {"t": "a\nb"}}, 0),
        (b"file_name,t\na0.jpg," + b"x" * 200_000 + b"\n", {"a0.jpg": {"t": "x" * 200_000}}, 0),
        (b"file_name,t\n,x\nno.jpg,y\n\n", {}, 2),
        (b"name,t\na0.jpg,x\n", {}, 1),
        (b"", {}, 1),
        (b"\0\xff\xfe", {}, 2),
    ],
    ids=range(10),
)
def test_a_csv_row_that_makes_no_sense_costs_its_metadata(
    folder: Path, table: bytes, said: dict[str, object], told: int
) -> None:
    (folder / "metadata.csv").write_bytes(table)
    found, passed = facts()
    assert found == said
    assert len(passed) == told


def test_the_layouts_of_hugging_face(folder: Path) -> None:
    lines = [
        json.dumps({"file_name": "a0.jpg", "text": "zero", "boxes": [[1, 2]]}),
        "not JSON",
        "null",
        json.dumps({"text": "no name"}),
        json.dumps({"file_name": 7}),
        "",
        json.dumps({"file_name": "train/a2.jpg", "text": "above", "n": 1}),
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    rows = {"file_name": ["a2.jpg"], "text": ["beside"]}
    pq.write_table(pa.table(rows), folder / "train" / "metadata.parquet")
    found, passed = facts()
    assert found == {
        "a0.jpg": {"text": "zero", "boxes": [[1, 2]]},
        "train/a2.jpg": {"text": "beside", "n": 1},
    }
    assert sorted(passed) == [
        "metadata that is JSON but no object: left out",
        "metadata that is not JSON: left out",
        "rows of a table that name no picture: left out",
    ]


def test_a_parquet_of_that_name_may_hold_the_pictures(folder: Path) -> None:
    pq.write_table(pa.table({"image": [b"inside"], "n": [1]}), folder / "metadata.parquet")
    found, _ = searched("in")
    assert found["in/metadata.parquet::0"] == (b"inside", {"n": 1})


def test_metadata_from_json_lines_elsewhere(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "facts.jsonl"
    table.write_text('{"image": "in/a0.jpg", "n": 1}\n')
    found, _ = searched("in", metadata=table)
    assert found["in/a0.jpg"] == (b"a0.jpg", {"n": 1})
