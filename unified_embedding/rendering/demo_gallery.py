"""Render the demo gallery: catalogue pictures and simulated photographs of the same products.

Run as `python -m unified_embedding.rendering.demo_gallery --furniture FILE.deb|DIR --out demo/`.
"""

import csv
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import track

from unified_embedding.errors import DataError
from unified_embedding.rendering.furniture import (
    HOW_TO_GET,
    PACKAGE,
    PACKAGE_VERSION,
    Product,
    credits_table,
    read_products,
    unpack,
)
from unified_embedding.rendering.mesh import load_mesh
from unified_embedding.rendering.shots import camera_shot, seeded

PRODUCTS: Final = Path(__file__).with_name("demo_products.txt")
SHOTS: Final = 2
COLUMNS: Final = ("image", "product", "role", "name", "category", "creator", "license")
SEED: Final = 2019


def build(furniture: Path, out: Path, seed: int = SEED) -> None:
    """Write catalogue/, shots/, gallery.csv and ATTRIBUTION.md under `out`, all or nothing.

    Raises:
        DataError: the source is missing, damaged, or lacks a product of the list.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as unpacked,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as beside,
    ):
        libraries, gallery = Path(unpacked), Path(beside)
        unpack(furniture, libraries)
        products = chosen_products(libraries)
        (gallery / "catalogue").mkdir()
        (gallery / "shots").mkdir()
        for product in track(products, "rendering", console=Console(stderr=True)):
            _write_pictures(product, libraries, gallery, seed)
        (gallery / "gallery.csv").write_text(_gallery_csv(products), newline="")
        (gallery / "ATTRIBUTION.md").write_text(_attribution(products))
        _install(gallery, out)


def chosen_products(libraries: Path) -> list[Product]:
    """The products of the committed list, in its order."""
    wanted = [line for line in PRODUCTS.read_text().splitlines() if not line.startswith("#")]
    known = {product.id: product for product in read_products(libraries)}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise DataError(f"the libraries lack the products {missing}; {HOW_TO_GET}")
    return [known[name] for name in wanted]


def _write_pictures(product: Product, libraries: Path, gallery: Path, seed: int) -> None:
    shutil.copyfile(libraries / product.picture, gallery / "catalogue" / f"{product.id}.png")
    mesh = load_mesh(libraries / product.model, product.size, product.rotation)
    for number in range(1, SHOTS + 1):
        jpeg = camera_shot(mesh, product.elevation, seeded(seed, product.id, number))
        (gallery / "shots" / f"{product.id}-{number}.jpg").write_bytes(jpeg)


def _gallery_csv(products: list[Product]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for p in products:
        images = [(f"catalogue/{p.id}.png", "catalogue")]
        images += [(f"shots/{p.id}-{number}.jpg", "shot") for number in range(1, SHOTS + 1)]
        for image, role in images:
            writer.writerow((image, p.id, role, p.name, p.category, p.creator, p.license))
    return text.getvalue()


def _attribution(products: list[Product]) -> str:
    lines = [
        "# Attribution",
        "",
        "The products are 3D models of the furniture libraries of Sweet Home 3D",
        f"(Debian package {PACKAGE} {PACKAGE_VERSION}; libraries BlendSwap-CC-BY and KatorLegaz,",
        "converted to OBJ by Emmanuel Puybaret / eTeks).",
        "The pictures in `catalogue/` are the libraries' own, unchanged.",
        "The pictures in `shots/` are simulated photographs: they were rendered from the models by",
        "`unified_embedding/rendering/demo_gallery.py`, placed in generated rooms and changed by",
        "camera effects. No creator endorses this use.",
        "",
    ]
    return "\n".join(lines) + "\n" + credits_table(products)


def _install(gallery: Path, out: Path) -> None:
    """Put the finished gallery in place; files of `out` that are not ours stay."""
    out.mkdir(exist_ok=True)
    for name in ("catalogue", "shots"):
        old = out / name
        if old.exists():
            shutil.rmtree(old)
        os.replace(gallery / name, old)
    for name in ("gallery.csv", "ATTRIBUTION.md"):
        os.replace(gallery / name, out / name)


def main(
    furniture: Annotated[Path, typer.Option(help="the .deb package or a folder of .sh3f files")],
    out: Annotated[Path, typer.Option(help="folder of the gallery")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="a different seed takes different photographs")] = SEED,
) -> None:
    """Render the demo gallery from the furniture libraries of Sweet Home 3D."""
    try:
        build(furniture, out, seed)
    except DataError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    typer.echo(f"wrote {out / 'gallery.csv'}")


if __name__ == "__main__":
    typer.run(main)
