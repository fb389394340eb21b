"""The furniture libraries of Sweet Home 3D: products with a 3D model and a catalogue picture.

The source is Debian's package `sweethome3d-furniture` (version 1.8-1), or a folder that holds its
`.sh3f` libraries. A library is a zip file; its `PluginFurnitureCatalog.properties` lists one
product per number as `key#number=value` lines in Latin-1.
"""

import io
import lzma
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unified_embedding.errors import DataError

PACKAGE: Final = "sweethome3d-furniture"
PACKAGE_VERSION: Final = "1.8-1"
HOW_TO_GET: Final = (
    f"get it with `apt-get download {PACKAGE}={PACKAGE_VERSION}` (no root needed), or save "
    f"https://deb.debian.org/debian/pool/main/s/{PACKAGE}/{PACKAGE}_{PACKAGE_VERSION}_all.deb"
)

# What the LICENSE.TXT inside each library says. The fifth library, Reallusion, holds people and
# is left out.
LICENSES: Final = {
    "Scopia": "CC-BY-3.0",
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
}
LICENSE_URLS: Final = {
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-3.0-US": "https://creativecommons.org/licenses/by/3.0/us/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
}

CATALOG: Final = "PluginFurnitureCatalog.properties"
_ENTRY: Final = re.compile(r"^(\w+)#(\d+)=(.*)$", re.MULTILINE)
_DEB_MAGIC: Final = b"!<arch>\n"
_AR_HEADER: Final = 60


@dataclass(frozen=True)
class Product:
    """One product of a library.

    Attributes:
        id: unique name in lower case, fit for file names: "katorlegaz-futon-couch".
        library: one of `LICENSES`.
        name: what a person calls it.
        category: the catalogue's category, for instance "Living room".
        creator: whom the licence asks to name.
        license: SPDX identifier.
        size: width, height, depth in metres.
        elevation: height of its lower edge above the floor in metres; 0 when it stands.
        rotation: row-major 3 x 3 matrix that brings the model upright.
        picture: path of the catalogue picture inside the unpacked library.
        model: path of the OBJ file inside the unpacked library.
    """

    id: str
    library: str
    name: str
    category: str
    creator: str
    license: str
    size: tuple[float, float, float]
    elevation: float
    rotation: tuple[float, ...]
    picture: str
    model: str


def unpack(source: Path, folder: Path) -> None:
    """Unpack the libraries of a Debian package, or of a folder of `.sh3f` files, under `folder`.

    Each library gets a folder of its name. Needs neither dpkg nor unzip.

    Raises:
        DataError: `source` does not exist, is something else, or lacks a library.
    """
    for name, data in _libraries(source).items():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(folder / name)


def read_products(folder: Path) -> list[Product]:
    """Products of every unpacked library under `folder`, in the libraries' own order."""
    products = [product for library in LICENSES for product in _read_library(folder, library)]
    seen: set[str] = set()
    for product in products:
        if product.id in seen:
            raise DataError(f"two products are called {product.id}")
        seen.add(product.id)
    return products


def credits_table(products: Iterable[Product]) -> str:
    """Markdown: the licences with links, then a table of creator, licence and products."""
    by_creator: defaultdict[tuple[str, str], list[Product]] = defaultdict(list)
    for product in products:
        by_creator[product.creator, product.license].append(product)
    licenses = sorted({license_ for _, license_ in by_creator})
    lines = [
        "Licences: " + ", ".join(f"[{name}]({LICENSE_URLS[name]})" for name in licenses) + ".",
        "",
        "| creator | licence | products |",
        "|---|---|---|",
    ]
    for (creator, license_), owned in sorted(by_creator.items(), key=lambda item: item[0]):
        names = ", ".join(f"{product.name} (`{product.id}`)" for product in owned)
        lines.append(f"| {creator} | {license_} | {names} |")
    return "\n".join(lines) + "\n"


def _libraries(source: Path) -> dict[str, bytes]:
    if source.is_dir():
        found = {path.stem: path.read_bytes() for path in source.rglob("*.sh3f")}
    elif source.is_file():
        found = _from_deb(source)
    else:
        raise DataError(f"{source} does not exist; {HOW_TO_GET}")
    missing = sorted(set(LICENSES) - set(found))
    if missing:
        raise DataError(f"{source} lacks the libraries {missing}; {HOW_TO_GET}")
    return {name: found[name] for name in LICENSES}


def _from_deb(path: Path) -> dict[str, bytes]:
    """The `.sh3f` files inside a Debian package, which is an ar archive around a tar."""
    data = path.read_bytes()
    if not data.startswith(_DEB_MAGIC):
        raise DataError(f"{path} is not a Debian package; {HOW_TO_GET}")
    offset = len(_DEB_MAGIC)
    while offset + _AR_HEADER <= len(data):
        header = data[offset : offset + _AR_HEADER]
        size = int(header[48:58])
        offset += _AR_HEADER
        if header.startswith(b"data.tar"):
            return _from_tar(path, data[offset : offset + size])
        offset += size + size % 2
    raise DataError(f"{path} holds no data.tar; {HOW_TO_GET}")


def _from_tar(path: Path, data: bytes) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [m for m in archive.getmembers() if m.name.endswith(".sh3f")]
            files = {Path(m.name).stem: archive.extractfile(m) for m in members}
            return {name: file.read() for name, file in files.items() if file is not None}
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}); {HOW_TO_GET}") from error


def _read_library(folder: Path, library: str) -> list[Product]:
    catalog = folder / library / CATALOG
    if not catalog.exists():
        raise DataError(f"{catalog} does not exist; {HOW_TO_GET}")
    rows: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for key, number, value in _ENTRY.findall(catalog.read_text("latin-1")):
        rows[int(number)][key] = value.strip()
    return [_product(library, rows[number]) for number in sorted(rows)]


def _product(library: str, row: dict[str, str]) -> Product:
    local = row["id"].partition("#")[2]
    return Product(
        id=_slug(f"{library}-{local}"),
        library=library,
        name=row["name"],
        category=row["category"],
        creator=row["creator"],
        license=LICENSES[library],
        size=(float(row["width"]) / 100, float(row["height"]) / 100, float(row["depth"]) / 100),
        elevation=float(row.get("elevation", 0)) / 100,
        rotation=tuple(float(v) for v in row.get("modelRotation", "1 0 0 0 1 0 0 0 1").split()),
        picture=f"{library}/{row['icon'].lstrip('/')}",
        model=f"{library}/{row['model'].lstrip('/')}",
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
