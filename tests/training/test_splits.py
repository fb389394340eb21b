"""Nothing of the test set is trained on: every intersection is empty.

These tests read the committed tables. Those at the end also read the prepared data, where the
environment has them.
"""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from unified_embedding.datasets import emoji, make_splits, pictures, sources, splits
from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.datasets.store import data_home
from unified_embedding.rendering.furniture import Product, read_products
from unified_embedding.rendering.surfaces import TESTING, TRAINING

ROOT = Path(__file__).parents[2]
DISJOINT = ("train", "validation", "test")


def members(table: dict[str, str]) -> dict[str, set[str]]:
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name, split in table.items():
        groups[split].add(name)
    return groups


def test_test_products_are_the_two_test_libraries() -> None:
    table = splits.product_splits()
    assert len(table) == 795
    tested = {name for name in table if name.startswith(("blendswap-cc-by-", "katorlegaz-"))}
    assert members(dict(table))["test"] == tested
    assert len(tested) == 225


def test_validation_is_about_fifteen_percent_of_the_rest() -> None:
    counts = Counter(splits.product_splits().values())
    assert counts["validation"] / (795 - 225) == pytest.approx(0.15, abs=0.01)


def test_demo_products_are_test_products() -> None:
    rows = csv.DictReader((ROOT / "demo" / "gallery.csv").read_text().splitlines())
    demo = {row["product"] for row in rows}
    assert demo
    assert demo <= members(dict(splits.product_splits()))["test"]


@pytest.mark.parametrize("what", ["name", "label", "family"])
def test_emoji_splits_share_no_concept_class_or_family(what: str) -> None:
    where: defaultdict[str, set[str]] = defaultdict(set)
    for concept in splits.emoji_concepts():
        where[getattr(concept, what)].add(concept.split)
    crossing = {name for name, found in where.items() if len(found) > 1}
    assert not crossing


def test_emoji_families_hold_all_variants_of_a_name() -> None:
    where: defaultdict[str, set[str]] = defaultdict(set)
    for concept in splits.emoji_concepts():
        where[emoji.family(concept.name)].add(concept.split)
    assert all(len(found) == 1 for found in where.values())
    counts = Counter(concept.split for concept in splits.emoji_concepts())
    assert set(counts) == set(DISJOINT)
    assert counts["test"] > 400


def test_rooms_of_test_pictures_are_of_other_kinds() -> None:
    assert TRAINING.names
    assert TESTING.names
    assert not TRAINING.names & TESTING.names


def test_no_two_pictures_share_a_seed() -> None:
    """First numbers of the generators of every room, shot, scene and cast, over all splits."""
    product = Product("p", "", "", "", "", "", (1, 1, 1), 0, (), "", "")
    names = [name for name, split in splits.product_splits().items() if split != "gallery"]
    first = {}
    for split in DISJOINT:
        for kind, count in (("room", 3), ("shot", 3), ("scene", 50), ("cast", 50)):
            keys = [(n,) for n in range(count)]
            if kind in ("room", "shot"):
                keys = [(name, n) for name in names[::20] for n in range(count)]
            for key in keys:
                first[split, kind, *key] = pictures.seeded(split, kind, *key).integers(2**63)
    assert len(set(first.values())) == len(first)
    tasks = {s: pictures.shot_tasks([product], s, 2)[0].paths for s in DISJOINT}
    assert len({tuple(paths) for paths in tasks.values()}) == 3


def test_near_duplicates_leave_the_earlier_split() -> None:
    def made_up(name: str, library: str) -> Product:
        return Product(name, library, "x", "Kitchen", "", "", (1, 1, 1), 0, (), "", "")

    products = [made_up(f"s{i}", "Scopia") for i in range(20)]
    products += [made_up("k0", "KatorLegaz"), made_up("k1", "KatorLegaz")]
    embedding = np.eye(22)
    drawn = splits.draw_product_splits(products, embedding)
    assert Counter(drawn.values()) == {"train": 17, "validation": 3, "test": 2}
    trained = next(i for i, p in enumerate(products) if drawn[p.id] == "train")
    held = next(i for i, p in enumerate(products) if drawn[p.id] == "validation")
    embedding[trained] = embedding[20] + 0.1 * embedding[trained]
    assert splits.draw_product_splits(products, embedding)[products[trained].id] == "gallery"
    embedding = np.eye(22)
    embedding[trained] = embedding[held]
    again = splits.draw_product_splits(products, embedding)
    assert (again[products[trained].id], again[products[held].id]) == ("gallery", "validation")
    embedding = np.eye(22)
    embedding[20] = embedding[21]
    assert splits.draw_product_splits(products, embedding) == drawn


@pytest.fixture(scope="module")
def prepared() -> Path:
    home = data_home()
    if not (home / "manifest.csv").exists():
        pytest.skip(f"no prepared data in {home}; `make data` prepares them")
    return home


def test_prepared_manifest_keeps_the_splits_apart(prepared: Path) -> None:
    rows = read_manifest(prepared / "manifest.csv")
    table = splits.product_splits()
    concepts = {concept.label: concept for concept in splits.emoji_concepts()}
    for row in rows:
        if row["task"] == "browse":
            assert row["split"] == concepts[row["identity"]].split
            assert row["domain"] != emoji.NEVER_TRAINED or row["split"] == "test"
        else:
            assert row["split"] == table[row["identity"]]
        if row["task"] == "camera":
            assert not row["shop_instance"]
    by_picture: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        by_picture[row["image"]].add(row["split"])
    assert all(len(found) == 1 for found in by_picture.values())
    catalogue = {row["identity"] for row in rows if row["domain"] == "catalogue"}
    assert catalogue == set(table)


def test_prepared_scenes_show_products_of_one_split(prepared: Path) -> None:
    table = splits.product_splits()
    listings = list((prepared / "pictures").glob("scenes-*/*/*.json"))
    assert listings
    for listing in listings:
        for crop in pictures.crops_of(listing.read_bytes()):
            assert table[crop["product"]] == listing.parent.name


def test_committed_emoji_table_is_what_the_packages_give(prepared: Path) -> None:
    packages = {d: prepared / "downloads" / s.file for d, s in sources.EMOJI.items()}
    if not all(path.exists() for path in packages.values()):
        pytest.skip("the emoji packages are not in the cache")
    rows = make_splits.emoji_rows(packages)
    committed = [(c.name, c.label, c.family, c.split) for c in splits.emoji_concepts()]
    assert rows == committed


def test_the_embedder_would_draw_nearly_the_committed_product_table(prepared: Path) -> None:
    """The table stands, whatever is released later: 4a135b631b33 found its near-duplicates."""
    pytest.importorskip("onnxruntime", reason="near-duplicates are found with the ONNX embedder")
    model = ROOT / "models" / "unified-embedder-lite0"
    if not model.exists():
        pytest.skip("the released embedder is not in this checkout")
    folder = prepared / "pictures"
    products = read_products(folder / "libraries")
    embedding = make_splits.embed([folder / "catalogue" / f"{p.id}.png" for p in products], model)
    drawn, committed = splits.draw_product_splits(products, embedding), splits.product_splits()
    assert drawn.keys() == committed.keys()
    others = {name for name, split in committed.items() if drawn[name] != split}
    assert len(others) <= 0.01 * len(committed), others
    assert not {name for name in others if committed[name] == "test"}
