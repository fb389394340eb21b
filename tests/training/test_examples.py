"""Manifest rows as columns: selection, class numbers, and runs on a manifest of one's own."""

from pathlib import Path

import numpy as np
import pytest
from made_up_shop import write_shop

from unified_embedding.datasets import made_up
from unified_embedding.datasets.manifest import COLUMNS, check_rows, write_manifest
from unified_embedding.datasets.store import HOME_VARIABLE
from unified_embedding.datasets.task_table import TASKS, label_columns
from unified_embedding.errors import DataError, TrainingError
from unified_embedding.training.config import Config, DataConfig, MadeUp
from unified_embedding.training.distributed import ALONE
from unified_embedding.training.examples import (
    from_rows,
    load_rows,
    made_up_rows,
    read_made_up,
    select,
)
from unified_embedding.training.trainer import Trainer


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest of real files: three classes of browse and two products of shop."""
    rows = []
    for label in range(5):
        for variant in range(2):
            name = f"{label}-{variant}.png"
            made_up.picture(label, variant, 40).save(tmp_path / name)
            labels = (
                {"task": "browse", "browse_class": f"b{label}"}
                if label < 3
                else {"task": "shop", "shop_instance": f"p{label}", "shop_class": "chair"}
            )
            split = "validation" if label == 2 else "train"
            rows.append({"image": name, "domain": f"d{variant}", "split": split, **labels})
    rows[-1].pop("shop_class")
    write_manifest(tmp_path / "manifest.csv", rows)
    return tmp_path / "manifest.csv"


def config(manifest: Path, **fields: object) -> DataConfig:
    return DataConfig.model_validate({"manifest": str(manifest), **fields})


def test_rows_become_columns_and_pictures_are_read_beside_the_manifest(manifest: Path) -> None:
    data = config(manifest, tasks=["browse", "shop"])
    train = select(*load_rows(data), data, "train")
    assert train.task.tolist() == ["browse"] * 4 + ["shop"] * 4
    assert train.classes("browse_class") == ["b0", "b1"]
    assert train.classes("camera_category") == []
    assert train.encoded("shop_class", ["chair"]).tolist() == [-1] * 4 + [0, 0, 0, -1]
    assert train.encoded("shop_instance", ["p3", "p4"]).tolist() == [-1] * 4 + [0, 0, 1, 1]
    assert train.read("0-1.png") == (manifest.parent / "0-1.png").read_bytes()
    assert select(*load_rows(data), data, "validation").images == ["2-0.png", "2-1.png"]
    with pytest.raises(DataError, match=r"names .*gone\.png"):
        train.read("gone.png")


def test_prepared_stands_for_the_manifest_of_make_data(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(manifest.parent))
    rows, _ = load_rows(DataConfig.model_validate({"manifest": "prepared"}))
    assert len(rows) == 10


def test_a_label_outside_the_classes_is_refused(manifest: Path) -> None:
    data = config(manifest)
    train = select(*load_rows(data), data, "train")
    with pytest.raises(TrainingError, match="browse_class 'b1' is not a class"):
        train.encoded("browse_class", ["b0"])


def test_every_row_and_label_enters_the_fingerprint(manifest: Path) -> None:
    data = config(manifest)
    rows, read = load_rows(data)
    first = select(rows, read, data, "train").fingerprint()
    assert select(rows, read, data, "train").fingerprint() == first
    seen = {first}
    for change in ({"image": "x.png"}, {"domain": "x"}, {"browse_class": "b9"}):
        seen.add(from_rows([{**rows[0], **change}, *rows[1:4], *rows[6:]], read).fingerprint())
    assert len(seen) == 4


def test_made_up_rows_form_a_valid_manifest_with_classes_apart() -> None:
    rows = made_up_rows(MadeUp())
    check_rows([{column: row.get(column, "") for column in COLUMNS} for row in rows], "made up")
    train = from_rows([row for row in rows if row["split"] == "train"], read_made_up)
    counts = [len(train.classes(column)) for column in label_columns(TASKS)]
    assert counts == [12, 8, 5, 15]
    shop = train.labels["shop_class"][train.rows_of("shop")]
    assert 0 < np.mean(shop == "") < 0.5
    assert len({read_made_up(name) for name in train.images}) == len(train)


def test_a_manifest_of_ones_own_trains(manifest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = Config.model_validate(
        {
            "run": str(run),
            "data": {"manifest": str(manifest), "tasks": ["browse", "shop"]},
            "model": {"trunk": "resnet10t"},
            "preprocessing": {"size": 32},
            "batch": 4,
            "schedule": {"heads": {"steps": 1}, "full": {"steps": 1}},
        }
    )
    trainer = Trainer(settings, ALONE)
    assert [head.column for head in trainer.heads] == [
        "browse_class",
        "shop_class",
        "shop_instance",
    ]
    for pixels in trainer.pixels():
        assert pixels.shape == (4, 32, 32, 3)
        trainer.run_step(pixels)
    assert trainer.step == 2
    trainer.close()


SHARED = {"camera_category": ["shop"]}


def test_shop_pictures_carry_the_category_that_their_product_has_in_camera(tmp_path: Path) -> None:
    """Against a loop over all pairs of rows; nothing but that column of those rows changes."""
    path = write_shop(tmp_path)
    data, plain = config(path, shared_labels=SHARED), config(path)
    rows, read = load_rows(data)
    rows = [
        {**row, "camera_category": ""} if row["identity"] == "product 2" else row for row in rows
    ]
    found, before = (select(rows, read, one, "train") for one in (data, plain))
    kept = [row for row in rows if row["split"] == "train"]
    expected = []
    for row in kept:
        label = row["camera_category"]
        for other in kept:
            same = other["identity"] == row["identity"] and other["task"] == "camera"
            if row["task"] == "shop" and same:
                label = other["camera_category"]
        expected.append(label)
    assert found.labels["camera_category"].tolist() == expected
    shop = found.task == "shop"
    assert 0 < sum(label != "" for label in np.array(expected)[shop]) < shop.sum()
    assert (before.labels["camera_category"][shop] == "").all()
    for column in ("browse_class", "shop_class", "shop_instance"):
        assert found.labels[column].tolist() == before.labels[column].tolist()
    assert found.images == before.images
    assert found.fingerprint() != before.fingerprint()


def test_labels_are_shared_in_training_alone(tmp_path: Path) -> None:
    """What is validated, and the test set that is published, do not change."""
    path = write_shop(tmp_path)
    data = config(path, shared_labels=SHARED)
    rows, read = load_rows(data)
    for split in ("validation", "test"):
        found, before = (select(rows, read, one, split) for one in (data, config(path)))
        assert found.fingerprint() == before.fingerprint()
    # A product whose only camera rows are in another split has no label to share.
    moved = [
        {**row, "split": "test"} if row["task"] == "camera" and row["split"] == "train" else row
        for row in rows
    ]
    with pytest.raises(DataError, match="no training row of shop has an `identity`"):
        select(moved, read, data, "train")


def test_labels_that_contradict_each_other_are_not_shared(tmp_path: Path) -> None:
    data = config(write_shop(tmp_path), shared_labels=SHARED)
    rows, read = load_rows(data)
    first = next(i for i, row in enumerate(rows) if row["camera_category"] == "category 0")
    rows[first] = {**rows[first], "camera_category": "category 9"}
    with pytest.raises(DataError, match="'product 0' carry both 'category 9' and 'category 0'"):
        select(rows, read, data, "train")


@pytest.mark.parametrize("tasks", [["camera", "shop"], ["shop"]], ids=str)
def test_one_pass_trains_every_head_on_a_picture_that_shares_labels(
    tmp_path: Path, tasks: list[str]
) -> None:
    """The category head's gradient comes from the shop's rows too; a specialist may learn it."""
    run = tmp_path / "run"
    settings = Config.model_validate(
        {
            "run": str(run),
            "data": {
                "manifest": str(write_shop(tmp_path)),
                "tasks": tasks,
                "shared_labels": SHARED,
            },
            "model": {"trunk": "resnet10t"},
            "preprocessing": {"size": 32},
            "batch": 6,
            "schedule": {"heads": {"steps": 2}, "full": {"steps": 0}},
        }
    )
    trainer = Trainer(settings, ALONE)
    batch = trainer.plan.batch_rows(0)
    several = [
        len([c for c in trainer.numbers if trainer.numbers[c][row] >= 0])
        for row in batch
        if trainer.examples.task[row] == "shop"
    ]
    assert max(several) == 3
    head = next(head for head in trainer.heads if head.column == "camera_category")
    result = trainer.run_step(next(trainer.pixels()))
    loss = result.losses[trainer.heads.index(head)]
    assert head._labelled == sum(trainer.numbers["camera_category"][batch] >= 0)
    assert loss > 0
    trainer.close()
