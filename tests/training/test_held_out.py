"""The test set: who asks, who answers, and that nobody changes it unnoticed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from made_up_shop import NEVER_TRAINED, PRODUCTS, write_shop

from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.errors import DataError
from unified_embedding.evaluation import frozen
from unified_embedding.protocols.held_out import HeldOut, held_out
from unified_embedding.protocols.tasks import MAIN, build_tasks


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_shop(tmp_path)


def load(manifest: Path) -> HeldOut:
    return held_out(read_manifest(manifest), manifest.parent)


def test_queries_are_test_pictures_and_galleries_keep_every_product(manifest: Path) -> None:
    rows = read_manifest(manifest)
    pictures = held_out(rows, manifest.parent)
    test_shots = {r["image"] for r in rows if r["task"] == "camera" and r["split"] == "test"}
    test_shots -= {r["image"] for r in rows if r["domain"] == "catalogue"}
    asked = {pictures.images[row] for row in np.flatnonzero(pictures.query["camera"])}
    assert asked == test_shots
    for task in ("camera", "shop"):
        answers = {pictures.images[row] for row in np.flatnonzero(pictures.gallery[task])}
        assert answers == {f"catalogue/{product}.png" for product in range(PRODUCTS)}
    browse = {r["image"] for r in rows if r["task"] == "browse"}
    assert {pictures.images[row] for row in np.flatnonzero(pictures.gallery["browse"])} == browse
    # Training shots and crops are neither queries nor gallery.
    assert not any(image.startswith(("shots/0-", "crops/0-")) for image in pictures.images)


def test_a_picture_of_two_tasks_is_one_picture(manifest: Path) -> None:
    pictures = load(manifest)
    assert len(set(pictures.images)) == len(pictures.images)
    row = pictures.images.index("catalogue/9.png")
    assert pictures.labels["camera"][row] == pictures.labels["shop"][row] == "product 9"
    assert pictures.labels["category"][row] == "category 0"
    data = (manifest.parent / "catalogue/9.png").read_bytes()
    assert pictures.sha256[row] == hashlib.sha256(data).hexdigest()
    assert pictures.read(row) == data


def test_a_query_without_an_answer_is_not_asked(manifest: Path) -> None:
    pictures = load(manifest)
    category = next(task for task in build_tasks(pictures) if task.name == "camera category")
    asked = {pictures.labels["camera"][row] for row in category.queries()}
    assert f"product {PRODUCTS - 1}" not in asked  # it has no category
    exact = next(task for task in build_tasks(pictures) if task.name == "camera exact")
    assert f"product {PRODUCTS - 1}" in {pictures.labels["camera"][r] for r in exact.queries()}


def test_the_main_category_search_has_no_product_that_training_saw(manifest: Path) -> None:
    rows = read_manifest(manifest)
    pictures = held_out(rows, manifest.parent)
    tasks = {task.name: task for task in build_tasks(pictures)}
    assert MAIN["camera"] == ("camera category, unseen", "P@20")
    (unseen,), (whole,) = (
        tasks["camera category, unseen"].searches,
        tasks["camera category"].searches,
    )
    trained = {r["identity"] for r in rows if r["split"] == "train" and r["task"] == "camera"}
    assert trained
    assert {pictures.labels["camera"][row] for row in whole.gallery} > trained
    assert not {pictures.labels["camera"][row] for row in unseen.gallery} & trained
    # Nothing else is left out.
    left_out = set(whole.gallery.tolist()) - set(unseen.gallery.tolist())
    assert {pictures.labels["camera"][row] for row in left_out} == trained


def test_a_product_is_seen_when_any_task_trains_on_any_picture_of_it(manifest: Path) -> None:
    rows = read_manifest(manifest)
    # A catalogue of splits "gallery" whose shots were trained on.
    changed = [{**r, "split": "gallery"} if r["domain"] == "catalogue" else r for r in rows]
    before, after = (held_out(one, manifest.parent) for one in (rows, changed))
    assert before.images == after.images
    products = before.gallery["camera"]
    assert (before.seen[products] == after.seen[products]).all()


def test_a_product_that_becomes_seen_changes_the_frozen_test_set(manifest: Path) -> None:
    path = frozen.frozen_file(manifest)
    assert frozen.check(load(manifest), path)
    rows = [
        {**row, "split": "train"} if row["identity"] == "product 7" else row
        for row in read_manifest(manifest)
    ]
    moved = held_out(rows, manifest.parent)
    assert moved.digest() == load(manifest).digest()  # the published digest does not cover it
    with pytest.raises(DataError, match=r"frozen-seen.csv: 1 changed \(catalogue/7.png\)"):
        frozen.check(moved, path)


def test_never_trained_designs_stand_apart(manifest: Path) -> None:
    pictures = load(manifest)
    tasks = {task.name: task for task in build_tasks(pictures)}

    def designs(name: str) -> set[tuple[str, str]]:
        return {
            (str(pictures.domain[s.queries[0]]), str(pictures.domain[s.gallery[0]]))
            for s in tasks[name].searches
        }

    assert designs("browse pairs") == {("flat", "round"), ("round", "flat")}
    assert designs("browse unseen") == {
        pair
        for design in ("flat", "round")
        for pair in ((design, NEVER_TRAINED), (NEVER_TRAINED, design))
    }
    for name in ("browse merged", "one index, browse merged"):
        (search,) = tasks[name].searches
        assert NEVER_TRAINED not in pictures.domain[search.gallery]
        assert NEVER_TRAINED not in pictures.domain[search.queries]
    (search,) = tasks["one index, shop exact"].searches
    assert set(pictures.domain[search.gallery]) == {"catalogue", "flat", "round"}


def test_without_catalogue_pictures_test_pictures_search_one_another(tmp_path: Path) -> None:
    # The layout of Stanford Online Products: one domain, several photographs of a product.
    manifest = write_shop(tmp_path)
    rows = [r for r in read_manifest(manifest) if r["task"] == "shop" and r["domain"] == "scene"]
    pictures = held_out(rows, tmp_path)
    tasks = {task.name: task for task in build_tasks(pictures)}
    assert list(tasks) == ["shop exact", "one index, shop exact"]
    (search,) = tasks["shop exact"].searches
    assert search.queries.tolist() == search.gallery.tolist()
    assert len(search.queries) == len(pictures) == sum(r["split"] == "test" for r in rows)


def test_in_shop_queries_search_the_gallery_domain(tmp_path: Path) -> None:
    manifest = write_shop(tmp_path)
    domains = {"catalogue": "gallery", "scene": "query"}
    rows = [
        {**r, "domain": domains[r["domain"]]}
        for r in read_manifest(manifest)
        if r["task"] == "shop" and r["split"] == "test"
    ]
    pictures = held_out(rows, tmp_path)
    (search,) = next(t for t in build_tasks(pictures) if t.name == "shop exact").searches
    assert set(pictures.domain[search.queries]) == {"query"}
    assert set(pictures.domain[search.gallery]) == {"gallery"}


def test_a_manifest_without_test_queries_is_refused(manifest: Path) -> None:
    rows = [row for row in read_manifest(manifest) if row["split"] != "test"]
    with pytest.raises(DataError, match="no test queries"):
        held_out(rows, manifest.parent)


def test_the_first_look_freezes_and_the_second_finds_the_same(manifest: Path) -> None:
    path = frozen.frozen_file(manifest)
    assert frozen.check(load(manifest), path)
    assert not frozen.check(load(manifest), path)
    assert path.read_text() == load(manifest).table()


def test_the_order_of_rows_does_not_matter(manifest: Path) -> None:
    rows = read_manifest(manifest)
    assert (
        held_out(rows, manifest.parent).digest() == held_out(rows[::-1], manifest.parent).digest()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pixels", r"1 changed \(shots/9-1.png\)"),
        ("label", r"changed \(crops/9-1.png"),
        ("removed", r"1 missing \(shots/9-1.png\)"),
        ("added", r"1 new \(shots/0-1.png\)"),
    ],
)
def test_a_changed_test_set_is_refused(manifest: Path, change: str, message: str) -> None:
    path = frozen.frozen_file(manifest)
    frozen.check(load(manifest), path)
    rows = read_manifest(manifest)
    if change == "pixels":
        data = (manifest.parent / "shots/8-1.png").read_bytes()
        (manifest.parent / "shots/9-1.png").write_bytes(data)
    elif change == "label":
        for row in rows:
            if row["image"].startswith("crops/9"):
                row["identity"] = "product 8"
    elif change == "removed":
        rows = [r for r in rows if r["image"] != "shots/9-1.png"]
    else:
        rows = [{**r, "split": "test"} if r["image"] == "shots/0-1.png" else r for r in rows]
    with pytest.raises(DataError, match=message):
        frozen.check(held_out(rows, manifest.parent), path)


def test_published_figures_ask_for_their_own_test_set(manifest: Path) -> None:
    pictures = load(manifest)
    path = frozen.frozen_file(manifest)
    assert frozen.check(pictures, path, pictures.digest())
    with pytest.raises(DataError, match="published figures were measured on 0123456789ab"):
        frozen.check(pictures, path, "0123456789ab")


def test_a_missing_picture_is_named(manifest: Path) -> None:
    rows = read_manifest(manifest)
    (manifest.parent / "shots/9-1.png").unlink()
    with pytest.raises(DataError, match=r"shots/9-1.png cannot be read .*make data"):
        held_out(rows, manifest.parent)
