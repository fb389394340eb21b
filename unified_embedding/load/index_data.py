"""Made-up codes that lie as real ones do: images of products of categories, of few dimensions.

Uniform random codes have no neighbours to find, and every approximate index looks useless on
them. Here an embedding is a mean, a category, a product and an image in a 64-dimensional space,
projected to D dimensions; the spreads were set so that 900 products lie like the codes of 900
catalogue pictures of furniture (EfficientNet-Lite0, ImageNet weights):

    share of bits that differ    nearest  10th  100th  median pair
    real                            .157  .209   .260         .302
    made up                         .161  .184   .264         .311
"""

from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

LATENT: Final = 64
MEAN, CATEGORY, PRODUCT, IMAGE = 1.5, 1.0, 0.6, 0.65
CATEGORIES: Final = 12
IMAGES_PER_PRODUCT: Final = 20
BLOCK: Final = 50_000


class World:
    """Seeded products; images are drawn from them block by block, so any size fits in memory."""

    def __init__(self, rows: int, dim: int, seed: int) -> None:
        self.rows, self.dim, self.seed = rows, dim, seed
        self._products = max(1, rows // IMAGES_PER_PRODUCT)

    def block(self, start: int) -> NDArray[np.uint8]:
        """Codes uint8 [n, dim / 8] of the corpus from `start`, a multiple of BLOCK, on."""
        count = min(BLOCK, self.rows - start)
        which = np.arange(start, start + count) % self._products
        return self._images(which, np.random.default_rng([self.seed, 1, start]))

    def queries(self, count: int) -> NDArray[np.uint8]:
        """Codes of `count` new images of the corpus' products."""
        random = np.random.default_rng([self.seed, 2])
        return self._images(random.integers(0, self._products, count), random)

    def product(self, row: int) -> int:
        """Number of the product that a row of the corpus shows."""
        return row % self._products

    @cached_property
    def _centres(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        random = np.random.default_rng([self.seed, 0])
        projection = random.normal(size=(LATENT, self.dim))
        centres = MEAN * random.normal(size=LATENT)
        categories = centres + CATEGORY * random.normal(size=(CATEGORIES, LATENT))
        products = categories[random.integers(0, CATEGORIES, self._products)]
        products = products + PRODUCT * random.normal(size=products.shape)
        return products.astype(np.float32), projection.astype(np.float32)

    def _images(
        self, products: NDArray[np.int64], random: np.random.Generator
    ) -> NDArray[np.uint8]:
        centres, projection = self._centres
        noise = random.normal(size=(len(products), LATENT)).astype(np.float32)
        return np.packbits((centres[products] + IMAGE * noise) @ projection > 0, axis=1)
