"""Fashion-MNIST from IDX files of its own format."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified_embedding.datasets import fashion_mnist
from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.errors import DataError
from unified_embedding.protocols.held_out import held_out
from unified_embedding.protocols.tasks import build_tasks


def idx(array: np.ndarray) -> bytes:
    magic = 0x800 + array.ndim
    return gzip.compress(struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes())


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8)
LABELS = (np.arange(40) % 10).astype(np.uint8)


def test_idx_files_are_read_as_written() -> None:
    assert np.array_equal(fashion_mnist.read_idx(idx(IMAGES), 0x803), IMAGES)
    assert np.array_equal(fashion_mnist.read_idx(idx(LABELS), 0x801), LABELS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no gzip", "not whole"),
        (idx(IMAGES)[:-40], "not whole"),
        (gzip.compress(b""), "not an IDX file"),
        (idx(LABELS), "not an IDX file of kind 0x803"),
        (gzip.compress(gzip.decompress(idx(IMAGES))[:-1]), "but holds"),
    ],
)
def test_damaged_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fashion_mnist.read_idx(data, 0x803)


def test_the_first_pictures_search_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "QUERIES", 10)
    monkeypatch.setattr(fashion_mnist, "GALLERY", 30)
    manifest = fashion_mnist.write(tmp_path, IMAGES, LABELS)
    pictures = held_out(read_manifest(manifest), tmp_path)
    (search,) = next(t for t in build_tasks(pictures) if t.name == "camera category").searches
    assert (len(search.queries), len(search.gallery)) == (10, 30)
    assert len(set(pictures.cluster[search.queries])) == 10
    with Image.open(tmp_path / "pictures" / "00003.png") as picture:
        assert np.array_equal(np.asarray(picture), 255 - IMAGES[3])
    row = pictures.images.index("pictures/00012.png")
    assert pictures.labels["category"][row] == "pullover"


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="40 pictures are fewer than 3000"):
        fashion_mnist.write(tmp_path, IMAGES, LABELS)
