"""The committed demo gallery is complete, readable, attributed and small."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified_embedding.image import Preprocessing, load_pixels

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"
ROWS = list(csv.DictReader((DEMO / "gallery.csv").read_text().splitlines()))
LICENSES = {"CC-BY-3.0", "CC-BY-3.0-US"}


def test_every_product_has_one_catalogue_picture_and_two_shots() -> None:
    roles = Counter((row["product"], row["role"]) for row in ROWS)
    products = {row["product"] for row in ROWS}
    assert len(products) == 120
    assert roles == Counter(
        {(p, role): count for p in products for role, count in (("catalogue", 1), ("shot", 2))}
    )


def test_table_names_exactly_the_pictures_that_are_there() -> None:
    named = [row["image"] for row in ROWS]
    there = {str(path.relative_to(DEMO)) for path in DEMO.glob("*/*")}
    assert len(named) == len(set(named))
    assert set(named) == there


@pytest.mark.parametrize("column", ["image", "product", "role", "name", "category", "creator"])
def test_no_cell_is_empty(column: str) -> None:
    assert all(row[column].strip() for row in ROWS)
    assert {row["license"] for row in ROWS} == LICENSES


def test_every_picture_is_read_by_the_one_preprocessing() -> None:
    for row in ROWS:
        pixels = load_pixels((DEMO / row["image"]).read_bytes(), Preprocessing())
        assert pixels.shape == (224, 224, 3)
        assert pixels.std() > 4, f"{row['image']} is nearly blank"


def test_sizes_vary_so_that_preprocessing_has_work() -> None:
    sizes: dict[str, set[object]] = {"catalogue": set(), "shot": set()}
    for row in ROWS:
        with Image.open(DEMO / row["image"]) as image:
            sizes[row["role"]].add((image.format, image.size))
    assert sizes["catalogue"] == {("PNG", (128, 128))}
    assert len(sizes["shot"]) >= 6


def test_no_picture_repeats_another() -> None:
    seen: dict[str, str] = {}
    for row in ROWS:
        pixels = load_pixels((DEMO / row["image"]).read_bytes(), Preprocessing(size=64))
        digest = hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()
        assert digest not in seen, f"{row['image']} repeats {seen[digest]}"
        seen[digest] = row["image"]


def test_whole_gallery_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 6_000_000


def test_attribution_names_every_creator_licence_and_product() -> None:
    text = (DEMO / "ATTRIBUTION.md").read_text()
    lines = text.splitlines()
    for row in ROWS:
        start = f"| {row['creator']} | {row['license']} |"
        assert any(line.startswith(start) and f"`{row['product']}`" in line for line in lines)
    assert "simulated photographs" in text
    assert "https://creativecommons.org/licenses/by/3.0/us/" in text


def test_gallery_is_the_committed_list_of_products() -> None:
    listing = ROOT / "unified_embedding" / "rendering" / "demo_products.txt"
    wanted = [line for line in listing.read_text().splitlines() if not line.startswith("#")]
    assert list(dict.fromkeys(row["product"] for row in ROWS)) == wanted
