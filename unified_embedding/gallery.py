"""A labelled set of pictures in a folder: catalogue pictures and shots of the same products."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import GalleryError
from unified_embedding.image import SUFFIXES
from unified_embedding.paths import StrPath

MANIFEST: Final = "gallery.csv"
CATALOGUE: Final = "catalogue"
SHOT: Final = "shot"
_COLUMNS: Final = ("image", "product", "role")
# Fewer unlabelled pictures show too little, more only take longer.
_LEAST, _MOST = 32, 1000


@dataclass(frozen=True)
class Picture:
    """One row of gallery.csv: the file, the product it shows, its role, and a name for people."""

    path: Path
    product: str
    role: str
    name: str


@dataclass(frozen=True)
class Gallery:
    """Pictures of a folder, in the manifest's order."""

    folder: Path
    pictures: tuple[Picture, ...]

    @classmethod
    def load(cls, folder: StrPath) -> "Gallery":
        """Read `folder/gallery.csv` (needs image, product, role). Raises GalleryError."""
        folder = Path(folder)
        manifest = folder / MANIFEST
        try:
            with manifest.open(newline="") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:
            raise GalleryError(f"{manifest} cannot be read ({error.strerror})") from error
        pictures = tuple(_picture(folder, row, number) for number, row in enumerate(rows, start=2))
        if not pictures:
            raise GalleryError(f"{manifest} lists no picture")
        return cls(folder, pictures)

    @classmethod
    def unlabelled(cls, folder: StrPath) -> "Gallery":
        """Pictures of a folder without a manifest, evenly spaced by name where there are many.

        All are catalogue pictures of products of their own.

        Raises:
            GalleryError: there are too few.
        """
        folder = Path(folder)
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if len(files) < _LEAST:
            raise GalleryError(
                f"{folder} holds {len(files)} pictures ({', '.join(SUFFIXES)}); name a folder "
                f"with at least {_LEAST}"
            )
        chosen = np.linspace(0, len(files) - 1, min(len(files), _MOST)).astype(int)
        names = [str(files[index].relative_to(folder)) for index in chosen]
        return cls(folder, tuple(Picture(folder / n, n, CATALOGUE, n) for n in names))

    def role(self, role: str) -> tuple[Picture, ...]:
        """The pictures of one role, "catalogue" or "shot"."""
        return tuple(picture for picture in self.pictures if picture.role == role)

    def digest(self) -> str:
        """Twelve hex digits over every picture's bytes and label."""
        total = hashlib.sha256()
        for picture in self.pictures:
            total.update(f"{picture.product}\0{picture.role}\0".encode())
            total.update(hashlib.sha256(picture.path.read_bytes()).digest())
        return total.hexdigest()[:12]


def relevance(queries: Sequence[Picture], gallery: Sequence[Picture]) -> NDArray[np.bool_]:
    """bool [N, M]: query and gallery picture show the same product."""
    left = np.array([picture.product for picture in queries])
    right = np.array([picture.product for picture in gallery])
    return np.asarray(left[:, None] == right[None, :])


def _picture(folder: Path, row: dict[str, str], number: int) -> Picture:
    missing = [name for name in _COLUMNS if not row.get(name)]
    if missing:
        raise GalleryError(f"{folder / MANIFEST} line {number}: no value for {', '.join(missing)}")
    path = folder / row["image"]
    if not path.is_file():
        raise GalleryError(f"{folder / MANIFEST} line {number}: {path} does not exist")
    if row["role"] not in (CATALOGUE, SHOT):
        raise GalleryError(f"{folder / MANIFEST} line {number}: role {row['role']!r} is unknown")
    return Picture(path, row["product"], row["role"], row.get("name") or row["product"])
