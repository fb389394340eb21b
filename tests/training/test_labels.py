"""Product classes and categories."""

from dataclasses import replace

import pytest

from unified_embedding.datasets.labels import camera_categories, head_noun, shop_classes
from unified_embedding.rendering.furniture import Product

PRODUCT = Product(
    "p", "Scopia", "Chair", "Kitchen", "S", "CC0-1.0", (1, 1, 1), 0, (1,) * 9, "p.png", "p.obj"
)


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("Chair", "chair"),
        ("Round table", "table"),
        ("Table with 3 drawers", "table"),
        ("Concept Sedan 02", "sedan"),
        ("Frame Hôi An", "an"),
        ("Plate, glass and cutlery", "plate"),
        ("Shelves (large)", "shelve"),
        ("Glasses", "glass"),
        ("Drinking glass", "glass"),
        ("Bus", "bus"),
        ("Rubik's cube", "cube"),
        ("308", ""),
    ],
)
def test_head_noun(name: str, noun: str) -> None:
    assert head_noun(name) == noun


def test_class_needs_three_products() -> None:
    names = ["Chair", "Deck chair", "Chair with cushion", "Table", "Round table", "1998"]
    products = [replace(PRODUCT, id=str(i), name=name) for i, name in enumerate(names)]
    assert list(shop_classes(products).values()) == ["chair"] * 3 + [""] * 3


def test_category_needs_ten_products_and_a_meaning() -> None:
    kinds = ["Kitchen"] * 10 + ["Staircases"] * 9 + ["Miscellaneous"] * 20
    products = [replace(PRODUCT, id=str(i), category=kind) for i, kind in enumerate(kinds)]
    assert list(camera_categories(products).values()) == ["Kitchen"] * 10 + [""] * 29
