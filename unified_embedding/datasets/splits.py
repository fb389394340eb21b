"""Who is trained on and who is tested: one committed table per kind of identity.

`tables/products.csv` is shared by camera, shop and the demo gallery; `tables/emoji.csv` splits
browse by family. `make_splits.py` writes both; everything else reads them.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from unified_embedding.datasets.labels import camera_categories
from unified_embedding.errors import DataError
from unified_embedding.rendering.furniture import Product

Split = Literal["train", "validation", "test", "gallery"]

FOLDER: Final = Path(__file__).with_name("tables")
PRODUCTS: Final = FOLDER / "products.csv"
EMOJI: Final = FOLDER / "emoji.csv"

TEST_LIBRARIES: Final = ("BlendSwap-CC-BY", "KatorLegaz")
VALIDATION_SHARE: Final = 0.15
NEAR_DUPLICATE: Final = 0.95
"""Cosine of catalogue pictures above which two products count as one (released Lite0)."""

EMOJI_TEST_SHARE: Final = 0.3
EMOJI_VALIDATION_SHARE: Final = 0.1


@dataclass(frozen=True)
class Concept:
    """One emoji concept: its class (the label), its family and its split."""

    name: str
    label: str
    family: str
    split: Split


def product_splits() -> dict[str, Split]:
    """Product id -> split, from the committed table."""
    return {row["product"]: _split(row["split"], PRODUCTS) for row in _read(PRODUCTS)}


def emoji_concepts() -> list[Concept]:
    """The concepts of the committed table."""
    return [
        Concept(row["concept"], row["class"], row["family"], _split(row["split"], EMOJI))
        for row in _read(EMOJI)
    ]


def draw_product_splits(
    products: Sequence[Product], embedding: NDArray[np.floating[Any]]
) -> dict[str, Split]:
    """Split products: the test libraries; 15 % of each category of the rest; the rest.

    A product whose catalogue picture nearly repeats one of a later split (test after validation
    after train) leaves its own and fills galleries only.

    Args:
        products: all of them.
        embedding: of their catalogue pictures, float [N, D], in the same order.
    """
    held_out = _validation(products)
    splits: dict[str, Split] = {}
    for p in products:
        tested = p.library in TEST_LIBRARIES
        splits[p.id] = "test" if tested else "validation" if p.id in held_out else "train"
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    close = np.argwhere(np.triu(unit @ unit.T, 1) > NEAR_DUPLICATE)
    order = {"train": 0, "validation": 1, "test": 2}
    leaving = set()
    for pair in close:
        first, second = sorted((products[i].id for i in pair), key=lambda name: order[splits[name]])
        if splits[first] != splits[second]:
            leaving.add(first)
    return {name: "gallery" if name in leaving else split for name, split in splits.items()}


def draw_emoji_splits(families: Iterable[str]) -> dict[str, Split]:
    """Split families by their hash: 30 % test, 10 % validation."""
    splits: dict[str, Split] = {}
    for family in families:
        place = share_of(family)
        if place < EMOJI_TEST_SHARE:
            splits[family] = "test"
        elif place < EMOJI_TEST_SHARE + EMOJI_VALIDATION_SHARE:
            splits[family] = "validation"
        else:
            splits[family] = "train"
    return splits


def _validation(products: Sequence[Product]) -> frozenset[str]:
    """The first 15 % of each category of the training libraries, in the order of their hashes."""
    by_category: defaultdict[str, list[str]] = defaultdict(list)
    categories = camera_categories(products)
    for product in products:
        if product.library not in TEST_LIBRARIES:
            by_category[categories[product.id]].append(product.id)
    chosen: set[str] = set()
    for names in by_category.values():
        chosen.update(sorted(names, key=share_of)[: round(VALIDATION_SHARE * len(names))])
    return frozenset(chosen)


def share_of(name: str) -> float:
    """A place in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _read(path: Path) -> list[Mapping[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _split(text: str, path: Path) -> Split:
    for split in ("train", "validation", "test", "gallery"):
        if text == split:
            return split
    raise DataError(f"{path} holds the split {text!r}")
