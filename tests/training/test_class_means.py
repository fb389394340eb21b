"""Proxies that start from class means, against a loop over single pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from unified_embedding.errors import TrainingError
from unified_embedding.image import load_pixels
from unified_embedding.training import checkpoint
from unified_embedding.training.bank import FIRST_NORM, first_proxies
from unified_embedding.training.config import Config, load_config
from unified_embedding.training.distributed import ALONE
from unified_embedding.training.sampled_head import SampledHead
from unified_embedding.training.train import train
from unified_embedding.training.trainer import Trainer

LIMIT = 3
BASE = f"""
data:
  made_up: {{browse_class: 6, camera_category: 4, shop_class: 3, shop_instance: 8, per_class: 7}}
model: {{trunk: resnet10t}}
preprocessing: {{size: 32}}
batch: 12
sampled: {{browse_class: 5}}
class_means: {LIMIT}
validation: {{every: 0}}
schedule: {{heads: {{steps: 1}}, full: {{steps: 1}}, proxy_rate: 0, rate: 0, weight_decay: 0}}
"""


def configured(folder: Path, *overrides: str) -> Config:
    (folder / "c.yaml").write_text(BASE)
    run = folder / "run"
    run.mkdir(exist_ok=True)
    return load_config(folder / "c.yaml", [f"run={run}", *overrides])


def spread(members: list[int]) -> list[int]:
    """At most LIMIT of them, evenly spaced."""
    if len(members) <= LIMIT:
        return members
    return [members[int(place * len(members) / LIMIT)] for place in range(LIMIT)]


def expected(trainer: Trainer, column: str) -> np.ndarray:
    """Directions of the mean unit embeddings, one picture after another."""
    model, examples = trainer.model.eval(), trainer.examples
    means = []
    for name in trainer.classes[column]:
        members = [i for i, label in enumerate(examples.labels[column]) if label == name]
        units = []
        for row in spread(members):
            pixels = load_pixels(examples.read(examples.images[row]), trainer.preprocessing)
            with torch.no_grad():
                vector = model(torch.from_numpy(np.array(pixels))[None])[0].double().numpy()
            units.append(vector / np.linalg.norm(vector))
        mean = np.mean(units, axis=0)
        means.append(mean / np.linalg.norm(mean))
    return np.array(means)


@pytest.mark.parametrize("layer_norm", ["true", "false"])
def test_full_and_sampled_heads_start_from_the_mean_of_evenly_spaced_pictures(
    tmp_path: Path, layer_norm: str
) -> None:
    trainer = Trainer(configured(tmp_path, f"model.layer_norm={layer_norm}"), ALONE)
    trainer.start_at_class_means([])
    assert isinstance(trainer.heads[0], SampledHead)
    for head in trainer.heads:
        state = head.state()
        assert not state["kept"].any()
        # The same angle per step as from random proxies, whose rows are as long.
        torch.testing.assert_close(
            state["rows"].norm(dim=1), torch.full((head.classes,), FIRST_NORM)
        )
        np.testing.assert_allclose(
            state["rows"] / FIRST_NORM, expected(trainer, head.column), atol=1e-5
        )
    trainer.close()
    random = first_proxies(200, 1280, 0).norm(dim=1)
    assert float(random.mean()) == pytest.approx(FIRST_NORM, rel=1e-2)


def test_a_run_starts_from_them_once_and_resumes_what_it_made_of_them(tmp_path: Path) -> None:
    """At rate 0 the proxies of the checkpoint are those of the start."""
    config = configured(tmp_path)
    train(config, ALONE, Console(quiet=True))
    path = tmp_path / "run" / checkpoint.LAST
    values = checkpoint.read(path)
    trainer = Trainer(config, ALONE)
    trainer.start_at_class_means([])
    for head in trainer.heads:
        assert torch.equal(values["heads"][head.column]["rows"], head.state()["rows"])
    trainer.close()
    for column in values["heads"]:
        values["heads"][column]["rows"].fill_(7)
    checkpoint.save({k: v for k, v in values.items() if k != "format"}, path)
    train(config, ALONE, Console(quiet=True))
    resumed = Trainer(config, ALONE)
    assert resumed.resume()
    assert all(bool((head.state()["rows"] == 7).all()) for head in resumed.heads)
    resumed.close()
    for other in ("class_means=2", "class_means="):
        with pytest.raises(TrainingError, match="a run with another class_means"):
            train(configured(tmp_path, other), ALONE, Console(quiet=True))


def test_proxies_taken_from_another_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    first = Trainer(configured(tmp_path / "first", "class_means="), ALONE)
    first.save()
    kept = first.heads[1].state()["rows"].clone()
    first.close()
    config = configured(tmp_path, f"start_from={first.run / checkpoint.LAST}")
    train(config, ALONE, Console(quiet=True))
    found = checkpoint.read(tmp_path / "run" / checkpoint.LAST)["heads"]
    assert torch.equal(found[first.heads[1].column]["rows"], kept)
