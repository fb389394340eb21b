"""Training pixels: the one preprocessing, behind a random crop, mirror and colour change."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2  # type: ignore[import-untyped]

from unified_embedding.errors import DataError, ImageError
from unified_embedding.image import Box, Preprocessing, load_pixels
from unified_embedding.training.config import DataConfig
from unified_embedding.training.examples import Examples
from unified_embedding.training.plan import Plan, batches

Key = tuple[int, int, int]
_AUGMENTATION: Final = 3  # apart from the plan's own draws

STRONG: Final = v2.Compose(
    [
        v2.RandomPerspective(0.3, p=0.5, fill=127),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.3)], p=0.8),
        v2.RandomErasing(p=0.25, scale=(0.02, 0.2), value=127),
    ]
)
"""uint8 [3, S, S] to the same; draws from torch's global generator."""


class TrainingImages(Dataset[Tensor]):
    """Augmented pixels of (row, step, slot); the same triple gives the same pixels anywhere."""

    def __init__(
        self, examples: Examples, preprocessing: Preprocessing, data: DataConfig, seed: int
    ) -> None:
        self.examples = examples
        self.preprocessing = preprocessing
        self.data = data
        self.seed = seed

    def __getitem__(self, key: Key) -> Tensor:
        """Pixels uint8 [S, S, 3]. Raises DataError naming a picture that cannot be read."""
        row, step, slot = key
        rng = np.random.default_rng((self.seed, _AUGMENTATION, step, slot))
        box = random_box(rng, self.data.crop_area) if self.data.crop_area < 1 else None
        pixels = pixels_of(self.examples, row, self.preprocessing, box)
        if self.data.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self.data.color:
            pixels = change_color(pixels, rng, self.data.color)
        image = torch.from_numpy(np.array(pixels, order="C"))
        if self.data.augment == "light":
            return image
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            strong: Tensor = STRONG(image.permute(2, 0, 1)).permute(1, 2, 0).contiguous()
        return strong


def pixels_of(
    examples: Examples, row: int, preprocessing: Preprocessing, crop: Box | None = None
) -> NDArray[np.uint8]:
    """Pixels uint8 [S, S, 3] of one row. Raises DataError naming the picture."""
    image = examples.images[row]
    try:
        return load_pixels(examples.read(image), preprocessing, crop)
    except ImageError as error:
        raise DataError(f"picture {image} cannot be used: {error}") from error


def random_box(rng: np.random.Generator, smallest: float) -> Box:
    """A crop of `smallest` to 1 of the area, sides in proportion 3:4 to 4:3, anywhere."""
    area = rng.uniform(smallest, 1)
    # Width over height, within what fits into the picture at this area.
    slimmest, widest = max(3 / 4, area), min(4 / 3, 1 / area)
    proportion = math.exp(rng.uniform(math.log(slimmest), math.log(widest)))
    width = math.sqrt(area * proportion)
    height = area / width
    left, top = rng.random() * max(0, 1 - width), rng.random() * max(0, 1 - height)
    return Box(left, top, min(1.0, left + width), min(1.0, top + height))


def change_color(
    pixels: NDArray[np.uint8], rng: np.random.Generator, amount: float
) -> NDArray[np.uint8]:
    """Multiply each channel of uint8 [S, S, 3] by its own factor in 1 +- `amount`."""
    factors = rng.uniform(1 - amount, 1 + amount, 3)
    table = (np.arange(256)[:, None] * factors).clip(0, 255).round().astype(np.uint8)
    changed: NDArray[np.uint8] = np.stack([table[pixels[..., c], c] for c in range(3)], axis=-1)
    return changed


class _PlannedBatches(Sampler[list[Key]]):
    def __init__(self, plan: Plan, start: int, stop: int, slots: NDArray[np.int64]) -> None:
        self.arguments = plan, start, stop, slots

    def __iter__(self) -> Iterator[list[Key]]:
        return batches(*self.arguments)


def training_pixels(
    images: TrainingImages, plan: Plan, start: int, stop: int, slots: NDArray[np.int64]
) -> Iterator[Tensor]:
    """This rank's pixels uint8 [batch / world, S, S, 3], step after step."""
    workers = images.data.workers
    loader = DataLoader(
        images,
        batch_sampler=_PlannedBatches(plan, start, stop, slots),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a seed for its workers; from its own generator, so that the
        # training process's random state does not depend on the number of workers.
        generator=torch.Generator().manual_seed(images.seed),
    )
    return iter(loader)
