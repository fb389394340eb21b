"""Manifests for public retrieval sets that the reader has downloaded: layouts as published.

Stanford Online Products (Song et al., CVPR 2016): `Ebay_train.txt` and `Ebay_test.txt` with the
columns image_id, class_id, super_class_id, path. In-Shop Clothes Retrieval (Liu et al., CVPR
2016): `list_eval_partition.txt` with a count, a header, then image_name, item_id and
evaluation_status (train, query or gallery).
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from unified_embedding.datasets.manifest import COLUMNS, check_rows, write_manifest
from unified_embedding.datasets.splits import share_of
from unified_embedding.errors import DataError

_SOP_HEADER: Final = ["image_id", "class_id", "super_class_id", "path"]
_IN_SHOP_HEADER: Final = ["image_name", "item_id", "evaluation_status"]
_IN_SHOP_STATUS: Final = ("train", "query", "gallery")


def import_stanford(root: Path, validation_share: float = 0.1) -> Path:
    """Write `root/manifest.csv` for Stanford Online Products.

    The published test half stays the test split; products of the training half are moved to
    validation by hash. The super class is the shop class, the class is the product.

    Raises:
        DataError: a list file is missing or malformed, or a picture is not there.
    """
    rows = []
    for file, split in (("Ebay_train.txt", "train"), ("Ebay_test.txt", "test")):
        for line, (_, product, _, image) in _lines(root / file, _SOP_HEADER):
            kind = PurePosixPath(image).parent.name.removesuffix("_final")
            if not kind:
                raise DataError(f"{root / file}, line {line}: {image!r} lies in no class folder")
            part = _part(split, product, validation_share)
            rows.append(_row(image, kind, product, "photo", part))
    return _finish(root, rows)


def import_in_shop(root: Path, validation_share: float = 0.1) -> Path:
    """Write `root/manifest.csv` for In-Shop Clothes Retrieval.

    Query and gallery pictures are the test split, told apart by the domain, which is "photo" in
    training. The folder below `img` ("WOMEN/Dresses") is the shop class, the item is the product.

    Raises:
        DataError: the list file is missing or malformed, or a picture is not there.
    """
    file = _first(root, ("list_eval_partition.txt", "Eval/list_eval_partition.txt"))
    pictures = _first(root, ("img", "Img/img")).parent.relative_to(root)
    rows = []
    for line, (image, item, status) in _lines(file, _IN_SHOP_HEADER, counted=True):
        if status not in _IN_SHOP_STATUS:
            raise DataError(
                f"{file}, line {line}: evaluation_status {status!r} is not one of "
                f"{', '.join(_IN_SHOP_STATUS)}"
            )
        kind = "/".join(PurePosixPath(image).parts[1:-2])
        split = "train" if status == "train" else "test"
        part = _part(split, item, validation_share)
        domain = "photo" if status == "train" else status
        rows.append(_row(str(pictures / image), kind, item, domain, part))
    return _finish(root, rows)


def _part(split: str, product: str, validation_share: float) -> str:
    held_out = split == "train" and share_of(product) < validation_share
    return "validation" if held_out else split


def _row(image: str, kind: str, product: str, domain: str, split: str) -> dict[str, str]:
    filled = {
        "image": image,
        "task": "shop",
        "shop_class": kind,
        "shop_instance": product,
        "domain": domain,
        "split": split,
        "identity": product,
        "cluster": product,
    }
    return {column: filled.get(column, "") for column in COLUMNS}


def _finish(root: Path, rows: list[dict[str, str]]) -> Path:
    check_rows(rows, str(root), root)
    write_manifest(root / "manifest.csv", rows)
    return root / "manifest.csv"


def _first(root: Path, places: tuple[str, ...]) -> Path:
    for place in places:
        if (root / place).exists():
            return root / place
    raise DataError(f"{root} holds neither {' nor '.join(places)}; unpack the data set there")


def _lines(path: Path, header: list[str], counted: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells below the header, which must be as published.

    `counted` lists begin with a line that states how many rows follow.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; unpack the data set there") from None
    start = 1 if counted else 0
    if len(lines) <= start or lines[start].split() != header:
        raise DataError(f"{path}, line {start + 1}: expected the header {' '.join(header)!r}")
    body = [(number, text.split()) for number, text in enumerate(lines, 1) if number > start + 1]
    body = [(number, cells) for number, cells in body if cells]
    for number, cells in body:
        if len(cells) != len(header):
            raise DataError(f"{path}, line {number}: {len(cells)} cells, expected {len(header)}")
    if counted and lines[0].strip() != str(len(body)):
        raise DataError(f"{path} states {lines[0].strip()!r} rows and holds {len(body)}")
    yield from body
