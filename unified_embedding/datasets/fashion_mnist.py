"""Fashion-MNIST as a test set that no row was trained on.

`python -m unified_embedding.datasets.fashion_mnist` fetches the Debian package
(30.9 MB, MIT) and writes `fashion-mnist/manifest.csv` into the data folder: real catalogue
pictures of clothes, 28 x 28 grey, far from everything that is trained on here. The first
pictures of the published test half are the queries, the next ones the gallery, and right is the
same of ten categories.
"""

import gzip
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from unified_embedding.datasets.manifest import COLUMNS, check_rows, write_manifest
from unified_embedding.datasets.sources import Source, fetch
from unified_embedding.datasets.store import data_home
from unified_embedding.datasets.task_table import CAMERA
from unified_embedding.errors import DataError
from unified_embedding.whole_files import write_whole

QUERIES: Final = 1000
GALLERY: Final = 2000
CATEGORIES: Final = (
    *("T-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
"""In the order of the published label numbers."""

PACKAGE: Final = Source(
    "apt",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    30_900_652,
    "MIT",
    "Zalando SE (Fashion-MNIST, arXiv 1708.07747)",
    "evaluation only",
)

_FOLDER: Final = "usr/share/datasets/fashion-mnist"
_IMAGES_MAGIC: Final = 0x803
_LABELS_MAGIC: Final = 0x801


def read_idx(data: bytes, magic: int) -> NDArray[np.uint8]:
    """The array of a gzipped IDX file (header: magic, then each side, big-endian 32 bits).

    Raises:
        DataError: another magic number, or fewer bytes than the header states.
    """
    try:
        raw = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise DataError(f"the IDX file is not whole ({error})") from error
    sides = 1 + 2 * (magic == _IMAGES_MAGIC)
    header = np.frombuffer(raw[: 4 * (1 + sides)], dtype=">u4").astype(int)
    if len(header) != 1 + sides or header[0] != magic:
        raise DataError(f"not an IDX file of kind {magic:#x}")
    values = np.frombuffer(raw, dtype=np.uint8, offset=4 * (1 + sides))
    if values.size != np.prod(header[1:]):
        raise DataError(f"the IDX file states {header[1:].tolist()} but holds {values.size} values")
    return values.reshape(header[1:])


def write(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Path:
    """Write PNGs and `folder/manifest.csv`: queries first, then the gallery.

    Args:
        folder: made when needed.
        images: uint8 [N, H, W], dark background.
        labels: uint8 [N], numbers of `CATEGORIES`.

    Raises:
        DataError: fewer pictures than queries and gallery need.
    """
    if len(images) < QUERIES + GALLERY or len(labels) != len(images):
        raise DataError(f"{len(images)} pictures are fewer than {QUERIES + GALLERY}")
    rows = []
    for number in range(QUERIES + GALLERY):
        name = f"pictures/{number:05}.png"
        out = io.BytesIO()
        # White around the thing, as letterboxing and every other catalogue picture have it.
        Image.fromarray(255 - images[number]).save(out, "PNG")
        write_whole(folder / name, out.getvalue())
        filled = {
            "image": name,
            "task": CAMERA.name,
            CAMERA.category: CATEGORIES[labels[number]],
            "domain": "query" if number < QUERIES else "gallery",
            "split": "test" if number < QUERIES else "gallery",
        }
        rows.append({column: filled.get(column, "") for column in COLUMNS})
    check_rows(rows, "Fashion-MNIST", folder)
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def prepare(home: Path) -> Path:
    """Fetch the package into `home/downloads` and write the manifest.

    Raises:
        DataError: apt-get or dpkg-deb is missing, or the package is not the pinned one.
    """
    package, _ = fetch(PACKAGE, home / "downloads")
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                ["dpkg-deb", "-x", str(package), folder], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise DataError(f"{package} could not be unpacked with dpkg-deb ({error})") from error
        kinds = ("images-idx3", "labels-idx1")
        files = [Path(folder, _FOLDER, f"t10k-{kind}-ubyte.gz") for kind in kinds]
        images, labels = (path.read_bytes() for path in files)
    return write(
        home / "fashion-mnist", read_idx(images, _IMAGES_MAGIC), read_idx(labels, _LABELS_MAGIC)
    )


def main() -> None:
    """Fetch and prepare; again: from the cache."""
    console = Console(stderr=True)
    try:
        with console.status("preparing Fashion-MNIST"):
            path = prepare(data_home())
    except DataError as error:
        console.print(f"[red]not prepared:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    typer.echo(path)


if __name__ == "__main__":
    typer.run(main)
