"""The manifest: what is read back, and that every mistake is named with its row."""

from pathlib import Path

import pytest

from unified_embedding.datasets.manifest import COLUMNS, read_manifest, summary, write_manifest
from unified_embedding.errors import DataError

GOOD = [
    {"image": "a.png", "task": "browse", "browse_class": "cat", "domain": "flat", "split": "train"},
    {
        "image": "b.png",
        "task": "camera",
        "camera_category": "Kitchen",
        "domain": "shot",
        "split": "test",
        "identity": "pan-1",
    },
    {
        "image": "b.png",
        "task": "shop",
        "shop_class": "pan",
        "shop_instance": "pan-1",
        "domain": "catalogue",
        "split": "test",
        "identity": "pan-1",
        "cluster": "pan-1",
    },
    {"image": "sub/c.png", "task": "shop", "domain": "scene", "split": "gallery"},
]


def written(folder: Path, rows: list[dict[str, str]]) -> Path:
    for row in rows:
        image = folder / row["image"]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"x")
    write_manifest(folder / "m.csv", rows)
    return folder / "m.csv"


def test_rows_come_back_with_every_column(tmp_path: Path) -> None:
    rows = read_manifest(written(tmp_path, GOOD))
    assert [{k: v for k, v in row.items() if v} for row in rows] == GOOD
    assert all(tuple(row) == COLUMNS for row in rows)
    assert "camera   test" in summary(rows)


def test_parquet_says_the_same(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from pyarrow import parquet

    rows = read_manifest(written(tmp_path, GOOD))
    table = pa.table({c: [row[c] or None for row in rows] for c in COLUMNS})
    parquet.write_table(table, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet") == rows


def test_hand_written_file_with_few_columns_is_enough(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_bytes(b"x")
    text = "\ufeffsplit,image,task,domain,shop_instance\ntrain,p.jpg,shop,photo,shoe-7\n"
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    assert read_manifest(tmp_path / "m.csv")[0]["shop_instance"] == "shoe-7"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "browze"}, "task 'browze' is not one of browse, camera, shop"),
        ({"split": "dev"}, "split 'dev' is not one of train, validation, test, gallery"),
        ({"domain": ""}, "domain is empty"),
        ({"image": "/a.png"}, "below the manifest's folder"),
        ({"image": "../a.png"}, "below the manifest's folder"),
        ({"image": "sub\\a.png"}, "forward slashes"),
        ({"image": "gone.png"}, "gone.png is not there"),
        ({"shop_class": "pan"}, "shop_class is filled, but it is a label of shop"),
        ({"shop_instance": "pan-1"}, "shop_instance is filled, but it is a label of shop"),
        ({"camera_category": "Kitchen "}, "begins or ends with a space"),
        ({"image": "b.png", "task": "shop", "camera_category": ""}, "repeats row 2"),
        ({"image": "a.png", "split": "train"}, "identity 'pan-1' is in test here and in train"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, change: dict[str, str], says: str) -> None:
    first = {**GOOD[1], "image": "a.png", **change}
    good = [{**GOOD[2]}, *GOOD[3:]]
    if "repeats" in says:
        good = [{**GOOD[2]}, first, *GOOD[3:]]
        path = written(tmp_path, good)
        with pytest.raises(DataError, match=r"row 2 \('b.png'\): repeats row 1"):
            read_manifest(path)
        return
    order = [first, *good] if "identity" in says else [*good, first]
    path = written(tmp_path, [row for row in order if row is not first])
    (tmp_path / "a.png").write_bytes(b"x")
    write_manifest(path, order)
    row = 2 if "identity" in says else 3
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert f"row {row} " in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("column", ["identity", "cluster", "browse_class"])
def test_identity_never_crosses_splits(tmp_path: Path, column: str) -> None:
    base = {"task": "browse", "domain": "flat", column: "same"}
    rows = [
        {**base, "image": "1.png", "split": "gallery"},
        {**base, "image": "2.png", "split": "validation"},
        {**base, "image": "3.png", "split": "train"},
    ]
    with pytest.raises(DataError, match=r"row 3 .*validation in row 2"):
        read_manifest(written(tmp_path, rows))
    assert len(read_manifest(written(tmp_path, rows[:2]))) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,task,split\n", r"missing \['domain'\]"),
        ("image,task,split,domain,colour\n", r"unknown \['colour'\]"),
        ("image,image,task,split,domain\n", "each once"),
        ("image,task,split,domain\na.png,shop,train\n", "row 1 has 3 cells, the header 4"),
        ("image,task,split,domain\n", "has no rows"),
        ('image,task,split,domain\n"a.png,shop,train,photo\n', "cannot be read"),
        ("", "missing"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        read_manifest(tmp_path / "m.csv")


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; `make data`"):
        read_manifest(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"neither .csv nor .parquet"):
        read_manifest(tmp_path / "m.json")
    (tmp_path / "m.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path / "m.parquet")
