from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from unified_embedding.index import Origin

Codes = NDArray[np.uint8]


@pytest.fixture
def origin() -> "Origin":
    from unified_embedding.index import Origin

    return Origin("0123456789ab", "openvino-fp32-aaaaaaaaaaaa")


@pytest.fixture(scope="session")
def clustered() -> Callable[..., Codes]:
    """Codes like real ones: members of a cluster differ from its centre in 8 % of the bits."""

    def make(rows: int, width: int = 32, clusters: int = 40, seed: int = 0) -> Codes:
        random = np.random.default_rng(seed)
        centres = random.integers(0, 256, (clusters, width), dtype=np.uint8)
        member = random.integers(0, clusters, rows)
        flips = np.packbits(random.random((rows, 8 * width)) < 0.08, axis=1)
        return np.asarray(centres[member] ^ flips, dtype=np.uint8)

    return make
