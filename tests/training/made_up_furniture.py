"""A made-up furniture package: coloured boxes as OBJ models, in the real package's layout."""

import io
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

from unified_embedding.rendering.furniture import LICENSES

BOX = """mtllib {name}.mtl
v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\nv 1 1 1\nv 0 1 1
usemtl body
f 5 6 7 8\nf 2 1 4 3\nf 6 2 3 7\nf 1 5 8 4\nf 8 7 3 4\nf 1 2 6 5
"""
NAMES = ("Round table", "Table with drawers", "Red table", "Lamp", "Wall lamp", "Old lamp")


def sh3f(library: str, count: int) -> bytes:
    """A library of `count` boxes as the bytes of an .sh3f file."""
    out, rows = io.BytesIO(), ["id=Made-up", "name=Bücher"]
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(1, count + 1):
            name, color = f"box_{number}", (40 * number % 256, 90, 255 - 40 * number % 256)
            row = {
                "id": f"{library}#{name}",
                "name": NAMES[(number - 1) % len(NAMES)],
                "category": "Living room" if number % 2 else "Miscellaneous",
                "icon": f"/{library.lower()}/{name}.png",
                "model": f"/{library.lower()}/{name}/{name}.obj",
                "creator": f"Maker {number % 2}",
                "width": str(40 + 10 * number),
                "depth": "60.0",
                "height": str(90 + 5 * number),
            }
            if number % 3 == 0:
                row["elevation"] = "120.0"
            rows += [f"{key}#{number}={value}" for key, value in row.items()]
            icon = io.BytesIO()
            Image.new("RGBA", (128, 128), (*color, 255)).save(icon, "PNG")
            archive.writestr(row["icon"].lstrip("/"), icon.getvalue())
            archive.writestr(row["model"].lstrip("/"), BOX.format(name=name))
            kd = " ".join(f"{value / 255:.3f}" for value in color)
            archive.writestr(f"{library.lower()}/{name}/{name}.mtl", f"newmtl body\nKd {kd}\n")
        text = "\n".join(rows) + "\n"
        archive.writestr("PluginFurnitureCatalog.properties", text.encode("latin-1"))
    return out.getvalue()


def libraries(folder: Path, count: int = 3) -> Path:
    """A folder with all four libraries as .sh3f files."""
    folder.mkdir(parents=True, exist_ok=True)
    for library in LICENSES:
        (folder / f"{library}.sh3f").write_bytes(sh3f(library, count))
    return folder


def deb(path: Path, count: int = 3) -> Path:
    """The four libraries inside a Debian package: an ar archive around data.tar.xz."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for library in LICENSES:
            body = sh3f(library, count)
            member = tarfile.TarInfo(f"./usr/share/sweethome3d/furniture/{library}.sh3f")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    members = {"debian-binary": b"2.0\n", "data.tar.xz": data.getvalue()}
    out = b"!<arch>\n"
    for name, body in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        out += body + b"\n" * (len(body) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path
