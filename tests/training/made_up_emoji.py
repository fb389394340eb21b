"""Made-up emoji packages in the layout of the real ones."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

COLORS = {
    "cook": "#ff0000",
    "man-cook": "#ff0000",
    "woman-cook": "#aa2200",
    "apple": "#00ff00",
    "ball": "#0000ff",
    "six-oclock": "#ffff00",
    "six-thirty": "#ffff55",
}


def body(color: str, shape: str) -> str:
    if shape == "circle":
        return f'<circle cx="8" cy="8" r="6" fill="{color}"/>'
    return (
        f'<rect x="3" y="3" width="{10 if shape == "square" else 6}" height="10" fill="{color}"/>'
    )


def icons(path: Path, shape: str, colors: Mapping[str, str] = COLORS) -> Path:
    """An Iconify JSON package whose icons are `shape`s; "cook-alias" is an alias."""
    data = {
        "prefix": shape,
        "width": 16,
        "height": 16,
        "icons": {name: {"body": body(color, shape)} for name, color in colors.items()},
        "aliases": {"mirrored-ball": {"parent": "ball", "hFlip": True}},
    }
    data["icons"]["ghost"] = {"body": body("#000000", shape), "hidden": True}
    chars = {f"1f60{number}": name for number, name in enumerate(colors)}
    return pack(path, {"icons.json": json.dumps(data), "chars.json": json.dumps(chars)})


def pictures(path: Path, colors: Mapping[str, str] = COLORS) -> Path:
    """A package of WebP pictures named by code point."""
    files = {}
    for number, color in enumerate(colors.values()):
        out = io.BytesIO()
        Image.new("RGBA", (64, 64), color).save(out, "WEBP", lossless=True)
        files[f"assets/1f60{number}-fe0f.webp"] = out.getvalue()
    return pack(path, files)


def pack(path: Path, files: Mapping[str, str | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
