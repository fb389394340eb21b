"""Folders of pictures as pixels, through the one preprocessing."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import ImageError
from unified_embedding.image import Preprocessing, load_pixels

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def find(folder: Path) -> list[Path]:
    """Every picture below `folder`, sorted; empty when the folder does not exist."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def spread(paths: list[Path], count: int) -> list[Path]:
    """At most `count` of `paths`, evenly spaced, so that every subfolder has its share."""
    if len(paths) <= count:
        return paths
    return [paths[i * len(paths) // count] for i in range(count)]


def read(paths: list[Path], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Pixels uint8 [N, S, S, 3] of `paths`. Raises ImageError naming the file that failed."""
    rows = []
    for path in paths:
        try:
            rows.append(load_pixels(path.read_bytes(), preprocessing))
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
    return np.stack(rows)
