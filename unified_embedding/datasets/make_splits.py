"""Draw the committed splits anew: `python -m unified_embedding.datasets.make_splits`.

Needs the fetched packages, and for near-duplicates the released embedder (onnxruntime). The
committed table of products was drawn with 4a135b631b33; another embedder draws a few otherwise.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from unified_embedding.checkout import RELEASED
from unified_embedding.datasets import emoji, sources, splits
from unified_embedding.datasets.store import data_home
from unified_embedding.errors import EmbeddingError
from unified_embedding.image import load_pixels
from unified_embedding.measure.files import write_csv
from unified_embedding.rendering import furniture
from unified_embedding.spec import INPUT, ONNX_FILE, OUTPUT, EmbedderSpec

_BATCH = 16


def embed(pictures: Iterable[Path], model: Path) -> NDArray[np.float32]:
    """Embeddings float32 [N, D] of pictures by the embedder in folder `model`."""
    import onnxruntime

    preprocessing = EmbedderSpec.load(model).preprocessing
    session = onnxruntime.InferenceSession(model / ONNX_FILE)
    pixels = [load_pixels(picture.read_bytes(), preprocessing) for picture in pictures]
    parts = [
        session.run([OUTPUT], {INPUT: np.stack(pixels[start : start + _BATCH])})[0]
        for start in range(0, len(pixels), _BATCH)
    ]
    return np.concatenate(parts)


def product_rows(libraries: Path, model: Path) -> list[tuple[str, ...]]:
    """Rows of `tables/products.csv` from unpacked libraries."""
    products = furniture.read_products(libraries)
    embedding = embed([libraries / product.picture for product in products], model)
    drawn = splits.draw_product_splits(products, embedding)
    return [(product.id, drawn[product.id]) for product in products]


def emoji_rows(packages: dict[str, Path]) -> list[tuple[str, ...]]:
    """Rows of `tables/emoji.csv` from package files."""
    drawings = emoji.read_designs(packages)
    pictures = {
        design: {concept: emoji.rasterise(drawing) for concept, drawing in icons.items()}
        for design, icons in drawings.items()
    }
    alike = emoji.alike_groups(pictures)
    concepts = sorted(drawings[emoji.COMMON[0]])
    labels = emoji.merge_classes(concepts, alike)
    families = emoji.merge_families(concepts, alike)
    drawn = splits.draw_emoji_splits(families.values())
    return [(c, labels[c], families[c], drawn[families[c]]) for c in concepts]


def draw(model: Path, home: Path) -> None:
    """Write both committed tables; packages are fetched into `home` where they are missing."""
    downloads = home / "downloads"
    package, _ = sources.fetch(sources.FURNITURE, downloads)
    packages = {design: sources.fetch(s, downloads)[0] for design, s in sources.EMOJI.items()}
    with tempfile.TemporaryDirectory() as folder:
        furniture.unpack(package, Path(folder))
        write_csv(splits.PRODUCTS, ("product", "split"), product_rows(Path(folder), model))
    write_csv(splits.EMOJI, ("concept", "class", "family", "split"), emoji_rows(packages))


def main(
    model: Annotated[Path, typer.Option(help="folder of the released embedder")] = RELEASED,
) -> None:
    """Write tables/products.csv and tables/emoji.csv."""
    try:
        draw(model, data_home())
    except EmbeddingError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
