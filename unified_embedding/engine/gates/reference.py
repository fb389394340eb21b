"""The truth the gates compare with: the fp32 ONNX on onnxruntime, over a gallery's pictures."""

import os
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.progress import track

from unified_embedding.errors import ImageError
from unified_embedding.gallery import Gallery
from unified_embedding.image import Preprocessing, load_pixels
from unified_embedding.onnx_runner import Runner, on_onnxruntime
from unified_embedding.spec import ONNX_FILE, EmbedderSpec, digest
from unified_embedding.whole_files import whole_file

BATCH: Final = 16


def load_gallery(gallery: Gallery, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Pixels uint8 [N, S, S, 3] of every picture, in order.

    Raises:
        ImageError: a picture cannot be decoded; the message names it.
    """
    pixels = []
    for picture in track(gallery.pictures, "reading pictures", transient=True):
        try:
            pixels.append(load_pixels(picture.path.read_bytes(), preprocessing))
        except ImageError as error:
            raise ImageError(f"{picture.path}: {error}") from None
    return np.stack(pixels)


def embed(run: Runner, pixels: NDArray[np.uint8], label: str) -> NDArray[np.float32]:
    """Embeddings [N, D] of pixels [N, S, S, 3] through `run`, `BATCH` rows at a time."""
    starts = range(0, len(pixels), BATCH)
    rows = [run(pixels[start : start + BATCH]) for start in track(starts, label, transient=True)]
    return np.concatenate(rows)


def reference_runner(model: Path) -> Runner:
    """The fp32 ONNX of an embedder folder on onnxruntime's CPU provider."""
    return on_onnxruntime(model / ONNX_FILE, len(os.sched_getaffinity(0)))


def reference_embeddings(
    model: Path, spec: EmbedderSpec, pixels: NDArray[np.uint8], cache: Path
) -> NDArray[np.float32]:
    """fp32 embeddings [N, D], read from `cache` when this embedder met these pixels before."""
    file = (
        cache / f"{spec.version}-{digest([ort.__version__, sha256(pixels.data).hexdigest()])}.npy"
    )
    if file.is_file():
        cached: NDArray[np.float32] = np.load(file)
        return cached
    embedding = embed(reference_runner(model), pixels, "fp32 reference")
    cache.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial, partial.open("wb") as stream:
        np.save(stream, embedding)
    return embedding
