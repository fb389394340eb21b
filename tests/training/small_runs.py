"""Small runs on made-up pictures, which tests of training share."""

from pathlib import Path

from unified_embedding.training.config import load_config
from unified_embedding.training.distributed import ALONE
from unified_embedding.training.trainer import Trainer

BASE = """
data:
  made_up: {browse_class: 6, camera_category: 4, shop_class: 3, shop_instance: 8, per_class: 3}
model: {trunk: resnet10t}
preprocessing: {size: 32}
batch: 12
"""


def trainer_in(folder: Path, run: str, settings: str, *overrides: str) -> Trainer:
    """A trainer of `BASE` with further `settings` in YAML, whose run's folder is there."""
    (folder / run).mkdir(parents=True, exist_ok=True)
    config = folder / "c.yaml"
    config.write_text(BASE + settings)
    return Trainer(load_config(config, [f"run={folder / run}", *overrides]), ALONE)


def run(trainer: Trainer, steps: int) -> list[list[float]]:
    """The losses of the next steps."""
    pixels = trainer.pixels()
    return [trainer.run_step(next(pixels)).losses for _ in range(steps)]
