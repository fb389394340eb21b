"""Manifest rows as columns: selection, class numbers, and runs on a manifest of one's own."""

from pathlib import Path

import numpy as np
import pytest

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
