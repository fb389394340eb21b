"""Importers on made-up folders of the published shape."""

from collections import Counter
from pathlib import Path

import pytest

from unified_embedding.datasets.importers import import_manifest
from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.errors import DataError

SOP_HEADER = "image_id class_id super_class_id path\n"


def stanford(root: Path) -> Path:
    lines: dict[str, list[str]] = {"Ebay_train.txt": [], "Ebay_test.txt": []}
    for number in range(40):
        file = "Ebay_train.txt" if number < 30 else "Ebay_test.txt"
        kind = ("bicycle", "coffee_maker")[number % 2]
        for view in range(2):
            image = f"{kind}_final/{number}_{view}.JPG"
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            (root / image).write_bytes(b"x")
            lines[file].append(f"{2 * number + view} {number} {number % 2 + 1} {image}\n")
    for file, body in lines.items():
        (root / file).write_text(SOP_HEADER + "".join(body))
    return root


def in_shop(root: Path, nested: bool) -> Path:
    pictures = root / "Img" if nested else root
    lists = root / "Eval" if nested else root
    lists.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(12):
        item = f"id_{number:08}"
        for view in range(3):
            status = "train" if number < 8 else ("query", "gallery", "gallery")[view]
            image = f"img/WOMEN/Blouses_Shirts/{item}/0{view}_1_front.jpg"
            (pictures / image).parent.mkdir(parents=True, exist_ok=True)
            (pictures / image).write_bytes(b"x")
            rows.append(f"{image}    {item}   {status}\n")
    text = f"{len(rows)}\nimage_name item_id evaluation_status\n{''.join(rows)}"
    (lists / "list_eval_partition.txt").write_text(text)
    return root


def test_stanford(tmp_path: Path) -> None:
    rows = read_manifest(import_manifest("sop", stanford(tmp_path), validation_share=0.3))
    assert len(rows) == 80
    assert rows[0]["shop_class"] == "bicycle"
    assert rows[0]["image"] == "bicycle_final/0_0.JPG"
    splits = Counter(row["split"] for row in rows)
    assert splits["test"] == 20
    assert 0 < splits["validation"] < splits["train"]
    assert {int(r["shop_instance"]) for r in rows if r["split"] == "test"} == set(range(30, 40))


@pytest.mark.parametrize("nested", [False, True])
def test_in_shop(tmp_path: Path, nested: bool) -> None:
    rows = read_manifest(import_manifest("in-shop", in_shop(tmp_path, nested)))
    assert len(rows) == 36
    assert {row["shop_class"] for row in rows} == {"WOMEN/Blouses_Shirts"}
    test = Counter(row["domain"] for row in rows if row["split"] == "test")
    assert test == {"query": 4, "gallery": 8}
    assert {row["domain"] for row in rows if row["split"] != "test"} == {"photo"}
    assert rows[0]["image"].startswith("Img/img/" if nested else "img/")


def test_no_validation_when_none_is_asked_for(tmp_path: Path) -> None:
    rows = read_manifest(import_manifest("sop", stanford(tmp_path), validation_share=0))
    assert {row["split"] for row in rows} == {"train", "test"}


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("Ebay_train.txt", None, "Ebay_train.txt does not exist"),
        ("Ebay_test.txt", "id class path\n", "line 1: expected the header"),
        ("Ebay_test.txt", SOP_HEADER + "1 2 3\n", "line 2: 3 cells, expected 4"),
        ("Ebay_test.txt", SOP_HEADER + "1 2 3 a.jpg\n", "'a.jpg' lies in no class folder"),
        ("Ebay_test.txt", SOP_HEADER + "1 99 3 x_final/a.jpg\n", "is not there"),
        ("Ebay_test.txt", SOP_HEADER + "1 3 1 bicycle_final/2_0.JPG\n", "row 61"),
    ],
)
def test_bad_stanford_is_named(tmp_path: Path, file: str, text: str | None, says: str) -> None:
    root = stanford(tmp_path)
    (root / file).unlink()
    if text is not None:
        (root / file).write_text(text)
    with pytest.raises(DataError, match=says):
        import_manifest("sop", root)
    assert not (root / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("36\n", "35\n", "states '35' rows and holds 36"),
        (" query", " probe", "evaluation_status 'probe' is not one of train, query, gallery"),
        ("image_name", "image", "line 2: expected the header"),
    ],
)
def test_bad_in_shop_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    file = in_shop(tmp_path, False) / "list_eval_partition.txt"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=says):
        import_manifest("in-shop", tmp_path)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unpack the data set there"):
        import_manifest("in-shop", tmp_path)
