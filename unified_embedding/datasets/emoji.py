"""Emoji of several designs: the same concept drawn by different hands (the task browse)."""

import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from unified_embedding.datasets.store import sha256
from unified_embedding.errors import DataError

SIDE: Final = 224
"""Pixels of a rasterised emoji."""

COMMON: Final = ("twemoji", "noto", "openmoji", "fluent-flat")
"""A concept is a name that all of these designs draw."""

NEVER_TRAINED: Final = "openmoji"
RENDERED: Final = "fluent-3d"
"""The design that comes as pictures named by code point instead of SVG by name."""

_GENDER: Final = re.compile(r"^(man|woman|person|men|women|people|mens|womens|mans|womans)-")
_CLOCK: Final = re.compile(r"^[a-z]+-(oclock|thirty)$")
_KEYCAP: Final = re.compile(r"^keycap-.+$")
_PEOPLE: Final = {
    **dict.fromkeys(("man", "woman", "person"), "person"),
    **dict.fromkeys(("boy", "girl", "child"), "child"),
    **dict.fromkeys(("old-man", "old-woman", "older-person"), "older-person"),
    **dict.fromkeys(("prince", "princess", "person-with-crown"), "prince"),
    **dict.fromkeys(("santa-claus", "mrs-claus", "mx-claus"), "santa-claus"),
    **dict.fromkeys(("pregnant-man", "pregnant-woman", "pregnant-person"), "pregnant"),
}
# Words that only turn, colour or scale a figure.
_VARIANT: Final = frozenset(
    (
        *("left", "right", "up", "down", "leftwards", "rightwards", "upwards", "downwards"),
        *("facing", "tilted", "oncoming", "large", "medium", "small", "light", "dark"),
        *("red", "orange", "yellow", "green", "blue", "purple", "brown", "pink"),
        *("black", "white", "grey"),
    )
)


def family(concept: str) -> str:
    """The family of a concept: names that differ by gender, hour, direction, colour or size.

    All of a family goes to one split; otherwise "man-cook" in training would give
    "woman-cook" away.
    """
    if concept in _PEOPLE:
        return _PEOPLE[concept]
    if _CLOCK.match(concept):
        return "clock"
    if _KEYCAP.match(concept):
        return "keycap"
    name = _GENDER.sub("", concept)
    words = [word for word in name.split("-") if word not in _VARIANT]
    return "-".join(words) or name


def merge_families(concepts: Iterable[str], alike: Iterable[Iterable[str]]) -> dict[str, str]:
    """Family of each concept, joined wherever a group of `alike` concepts spans several."""
    families = {concept: family(concept) for concept in concepts}
    return _joined(families, alike)


def merge_classes(concepts: Iterable[str], alike: Iterable[Iterable[str]]) -> dict[str, str]:
    """Class of each concept: concepts that some design draws with the same pixels are one."""
    return _joined({concept: concept for concept in concepts}, alike)


def alike_groups(pictures: Mapping[str, Mapping[str, bytes]]) -> list[list[str]]:
    """Groups of concepts whose pictures are pixel for pixel equal in some design.

    Args:
        pictures: design -> concept -> encoded picture.
    """
    groups = []
    for drawn in pictures.values():
        equal: defaultdict[str, list[str]] = defaultdict(list)
        for concept, data in drawn.items():
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
            # What lies under full transparency is not seen.
            equal[sha256((pixels * (pixels[..., 3:] > 0)).tobytes())].append(concept)
        groups += [sorted(group) for group in equal.values() if len(group) > 1]
    return sorted(groups)


def read_designs(packages: Mapping[str, Path]) -> dict[str, dict[str, str | bytes]]:
    """Every design's drawings of the common concepts: SVG text, or encoded pictures.

    Args:
        packages: design -> npm package file; all of `COMMON` must be among them.
    """
    missing = [design for design in COMMON if design not in packages]
    if missing:
        raise DataError(f"the emoji designs {missing} are needed to know the concepts")
    drawn: dict[str, dict[str, str | bytes]] = {}
    for design, path in packages.items():
        if design == RENDERED:
            drawn[design] = {**_read_pictures(path, _code_points(packages["noto"]))}
        else:
            drawn[design] = {**_read_icons(path)}
    concepts = set.intersection(*(set(drawn[design]) for design in COMMON))
    return {
        design: {concept: icons[concept] for concept in sorted(concepts & set(icons))}
        for design, icons in drawn.items()
    }


def rasterise(drawing: str | bytes) -> bytes:
    """PNG of `SIDE` pixels from an SVG; pictures are passed through as they are."""
    if isinstance(drawing, bytes):
        return drawing
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=drawing, width=SIDE, height=SIDE))


def suffix(drawing: str | bytes) -> str:
    """File suffix of what `rasterise` returns."""
    return "webp" if isinstance(drawing, bytes) else "png"


def _joined(names: dict[str, str], alike: Iterable[Iterable[str]]) -> dict[str, str]:
    """Union-find over values: groups of keys get one value, the first in the alphabet."""
    parent = {name: name for name in names.values()}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for group in alike:
        roots = sorted({root(names[concept]) for concept in group})
        for other in roots[1:]:
            parent[other] = roots[0]
    return {concept: root(name) for concept, name in names.items()}


def _read_icons(path: Path) -> dict[str, str]:
    """Icon name -> SVG of an Iconify JSON package, aliases included, hidden icons not."""
    data = _json(path, "package/icons.json")
    size = data.get("width", 16), data.get("height", 16)
    svgs = {
        name: _svg(icon, size) for name, icon in data["icons"].items() if not icon.get("hidden")
    }
    for name, alias in data.get("aliases", {}).items():
        icon = data["icons"].get(alias["parent"])
        if icon is not None and not icon.get("hidden"):
            svgs[name] = _svg({**icon, **alias}, size)
    return svgs


def _svg(icon: Mapping[str, Any], size: tuple[float, float]) -> str:
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", size[0]), icon.get("height", size[1])
    body = icon["body"]
    if icon.get("hFlip"):
        body = f'<g transform="translate({width + 2 * left} 0) scale(-1 1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def _code_points(path: Path) -> dict[str, str]:
    """Code points ("1f600", "2194") -> icon name."""
    return {str(code): str(name) for code, name in _json(path, "package/chars.json").items()}


def _read_pictures(path: Path, names: Mapping[str, str]) -> dict[str, bytes]:
    """Icon name -> WebP of a package whose files are called by code points."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            code = Path(member.name)
            if code.suffix != ".webp":
                continue
            name = names.get(code.stem) or names.get(code.stem.replace("-fe0f", ""))
            file = archive.extractfile(member)
            if name is not None and file is not None:
                found[name] = file.read()
    return found


def _json(path: Path, member: str) -> dict[str, Any]:
    with tarfile.open(path) as archive:
        file = archive.extractfile(member)
        if file is None:
            raise DataError(f"{path} holds no {member}")
        data = json.load(file)
    if not isinstance(data, dict):
        raise DataError(f"{member} of {path} is not a JSON object")
    return data
