from pathlib import Path

import pytest

from unified_embedding.errors import GalleryError
from unified_embedding.gallery import Gallery, relevance


def write(folder: Path, *rows: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "gallery.csv").write_text("\n".join(["image,product,role", *rows]) + "\n")
    for row in rows:
        (folder / row.split(",")[0]).write_bytes(row.encode())
    return folder


def test_roles_relevance_and_digest(tmp_path: Path) -> None:
    rows = ("a.png,chair,catalogue", "b.png,lamp,catalogue", "c.jpg,lamp,shot")
    gallery = Gallery.load(write(tmp_path, *rows))
    assert [p.product for p in gallery.role("catalogue")] == ["chair", "lamp"]
    assert relevance(gallery.role("shot"), gallery.role("catalogue")).tolist() == [[False, True]]
    before = gallery.digest()
    (tmp_path / "c.jpg").write_bytes(b"another picture")
    assert Gallery.load(tmp_path).digest() != before


def test_errors_name_the_line(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match=r"gallery\.csv cannot be read"):
        Gallery.load(tmp_path)
    folder = write(tmp_path / "x", "a.png,chair,catalogue", "b.png,,shot")
    with pytest.raises(GalleryError, match="line 3: no value for product"):
        Gallery.load(folder)
    folder = write(tmp_path / "y", "a.png,chair,poster")
    with pytest.raises(GalleryError, match="line 2: role 'poster' is unknown"):
        Gallery.load(folder)
    (folder / "a.png").unlink()
    with pytest.raises(GalleryError, match="does not exist"):
        Gallery.load(folder)
    with pytest.raises(GalleryError, match="lists no picture"):
        Gallery.load(write(tmp_path / "z"))
