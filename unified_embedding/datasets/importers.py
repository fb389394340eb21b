"""Public retrieval sets that the reader has downloaded, in the layout in which they are published.

| name | lists | test half |
|---|---|---|
| sop | Stanford Online Products: `Ebay_train.txt`, `Ebay_test.txt` | as listed |
| in-shop | In-Shop Clothes Retrieval: `list_eval_partition.txt` | as listed |
| cub | CUB-200-2011: `images.txt`, `image_class_labels.txt` | classes 101-200 |
| cars | Cars196: `cars_annos.mat`, or the devkit's two lists | classes 99-196 |

In-Shop is of Liu et al., CVPR 2016; the splits of the others are those of Song et al., CVPR 2016.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from unified_embedding.datasets.manifest import COLUMNS, check_rows, write_manifest
from unified_embedding.datasets.splits import share_of
from unified_embedding.datasets.task_table import SHOP, SHOP_KIND
from unified_embedding.errors import DataError, shown

_SOP_HEADER: Final = ["image_id", "class_id", "super_class_id", "path"]
_IN_SHOP_HEADER: Final = ["image_name", "item_id", "evaluation_status"]
_IN_SHOP_STATUS: Final = ("train", "query", "gallery")


_CUB_TRAIN: Final = 100
_CARS_TRAIN: Final = 98
"""Classes 1 to that number are the training half."""

Rows = list[dict[str, str]]
VALIDATION_SHARE: Final = 0.1


def import_manifest(name: str, root: Path, validation_share: float = VALIDATION_SHARE) -> Path:
    """Write `root/manifest.csv` for a public set; the published test half stays the test split.

    Args:
        name: of `PUBLIC`.
        root: the unpacked data set.
        validation_share: part of the training half's products that becomes the validation split,
            chosen by hash.

    Raises:
        DataError: a list file is missing or malformed, or a picture is not there.
    """
    rows = [
        {**row, "split": _part(row["split"], row["identity"], validation_share)}
        for row in PUBLIC[name](root)
    ]
    check_rows(rows, str(root), root)
    write_manifest(root / "manifest.csv", rows)
    return root / "manifest.csv"


def stanford_rows(root: Path) -> Rows:
    """Stanford Online Products. The super class is the shop class, the class is the product.

    Raises:
        DataError: a list file is missing or malformed; so do all readers of this module.
    """
    rows = []
    for file, split in (("Ebay_train.txt", "train"), ("Ebay_test.txt", "test")):
        for line, (_, product, _, image) in _lines(root / file, _SOP_HEADER):
            kind = PurePosixPath(image).parent.name.removesuffix("_final")
            if not kind:
                raise DataError(f"{root / file}, line {line}: {image!r} lies in no class folder")
            rows.append(_row(image, kind, product, "photo", split))
    return rows


def in_shop_rows(root: Path) -> Rows:
    """In-Shop Clothes Retrieval.

    Query and gallery pictures are the test split, told apart by the domain, which is "photo" in
    training. The folder below `img` ("WOMEN/Dresses") is the shop class, the item is the product.
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
        domain = "photo" if status == "train" else status
        rows.append(_row(str(pictures / image), kind, item, domain, split))
    return rows


def cub_rows(root: Path) -> Rows:
    """CUB-200-2011; the species is the product."""
    lists = _first(root, ("images.txt", "CUB_200_2011/images.txt")).parent
    classes = dict(cells for _, cells in _lines(lists / "image_class_labels.txt", None, width=2))
    pictures = lists.relative_to(root) / "images"
    rows = []
    for line, (number, image) in _lines(lists / "images.txt", None, width=2):
        where = f"{lists / 'images.txt'}, line {line}"
        if number not in classes:
            raise DataError(
                f"{where}: image {shown(number)} has no class in image_class_labels.txt"
            )
        species = _number(classes[number], f"{lists / 'image_class_labels.txt'}: class")
        split = "train" if species <= _CUB_TRAIN else "test"
        rows.append(_row(str(pictures / image), "", str(species), "photo", split))
    return rows


def cars_rows(root: Path) -> Rows:
    """Cars196, from `cars_annos.mat` beside `car_ims`, or from the devkit and its two folders."""
    if (root / "cars_annos.mat").exists():
        lists = [(root / "cars_annos.mat", "relative_im_path", "")]
    else:
        devkit = _first(root, ("devkit/cars_train_annos.mat", "cars_annos.mat")).parent
        lists = [
            (devkit / "cars_train_annos.mat", "fname", "cars_train"),
            (_first(devkit, ("cars_test_annos_withlabels.mat",)), "fname", "cars_test"),
        ]
    rows = []
    for file, path, folder in lists:
        for place, annotation in enumerate(_annotations(file), 1):
            where = f"{file}, annotation {place}"
            if path not in annotation or "class" not in annotation:
                raise DataError(f"{where} has no {path} or no class: not a list of Cars196")
            model = _number(annotation["class"], f"{where}: class")
            split = "train" if model <= _CARS_TRAIN else "test"
            image = str(PurePosixPath(folder) / str(annotation[path]))
            rows.append(_row(image, "", str(model), "photo", split))
    return rows


PUBLIC: Final[Mapping[str, Callable[[Path], Rows]]] = {
    "sop": stanford_rows,
    "in-shop": in_shop_rows,
    "cub": cub_rows,
    "cars": cars_rows,
}
"""Name -> manifest rows of the published splits, train and test, pictures not looked up."""


def _annotations(file: Path) -> list[dict[str, object]]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(file, simplify_cells=True)["annotations"]
    except (MatReadError, OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"{file} cannot be read as a MATLAB file with annotations ({shown(error)}); "
            "download it again"
        ) from error
    # One annotation alone comes without its list.
    return [found] if isinstance(found, dict) else list(found)


def _number(text: object, what: str) -> int:
    try:
        return int(str(text))
    except ValueError:
        raise DataError(f"{what} {shown(text)} is not a number; download the list again") from None


def _part(split: str, product: str, validation_share: float) -> str:
    held_out = split == "train" and share_of(product) < validation_share
    return "validation" if held_out else split


def _row(image: str, kind: str, product: str, domain: str, split: str) -> dict[str, str]:
    filled = {
        "image": image,
        "task": SHOP.name,
        SHOP_KIND: kind,
        SHOP.instance: product,
        "domain": domain,
        "split": split,
        "identity": product,
        "cluster": product,
    }
    return {column: filled.get(column, "") for column in COLUMNS}


def _first(root: Path, places: tuple[str, ...]) -> Path:
    for place in places:
        if (root / place).exists():
            return root / place
    raise DataError(f"{root} holds neither {' nor '.join(places)}; unpack the data set there")


def _lines(
    path: Path, header: list[str] | None, counted: bool = False, width: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells below the header, which must be as published.

    `counted` lists begin with a line that states how many rows follow; lists without a header
    have `width` cells.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; unpack the data set there") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged ({error}); download it again") from None
    start = 1 if counted else 0
    if header is not None:
        if len(lines) <= start or lines[start].split() != header:
            raise DataError(f"{path}, line {start + 1}: expected the header {' '.join(header)!r}")
        start, width = start + 1, len(header)
    body = [(number, text.split()) for number, text in enumerate(lines, 1) if number > start]
    body = [(number, cells) for number, cells in body if cells]
    for number, cells in body:
        if len(cells) != width:
            raise DataError(f"{path}, line {number}: {len(cells)} cells, expected {width}")
    if counted and lines[0].strip() != str(len(body)):
        raise DataError(f"{path} states {lines[0].strip()!r} rows and holds {len(body)}")
    yield from body
