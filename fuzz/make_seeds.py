"""Writes fuzz/seeds: one small good file of each kind that the project reads."""

import io
import tarfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SEEDS: Final = Path(__file__).parent / "seeds"
# Name, mode, and how Pillow saves it.
PICTURES: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("baseline.jpg", "RGB", {}),
    ("progressive.jpg", "RGB", {"progressive": True}),
    ("grey.jpg", "L", {}),
    ("cmyk.jpg", "CMYK", {}),
    ("rgb.png", "RGB", {}),
    ("rgba.png", "RGBA", {}),
    ("grey-alpha.png", "LA", {}),
    ("palette-transparent.png", "P", {"transparency": 3}),
    ("bits.png", "1", {}),
    ("grey16.png", "I;16", {}),
    ("lossy.webp", "RGB", {"quality": 60}),
    ("lossless-alpha.webp", "RGBA", {"lossless": True}),
    ("palette.gif", "P", {"transparency": 0}),
    ("rgb.bmp", "RGB", {}),
    ("palette.bmp", "P", {}),
    ("alpha.bmp", "RGBA", {}),
    ("raw.tif", "RGB", {}),
    ("lzw.tif", "RGB", {"compression": "tiff_lzw"}),
    ("deflate.tif", "L", {"compression": "tiff_adobe_deflate"}),
    ("jpeg.tif", "RGB", {"compression": "jpeg"}),
    ("grey16.tif", "I;16", {}),
    ("bits.tif", "1", {"compression": "group4"}),
    ("rgb.avif", "RGB", {}),
)


def main() -> None:
    """Write every seed."""
    SEEDS.mkdir(exist_ok=True)
    for name, mode, options in PICTURES:
        picture(mode).save(SEEDS / name, **options)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture("RGB").save(SEEDS / "turned.jpg", exif=turned)
    frames = [picture("RGB", seed) for seed in range(3)]
    for name in ("animation.gif", "animation.webp"):
        frames[0].save(SEEDS / name, save_all=True, append_images=frames[1:])
    members = {"a.jpg": b"a", "a.json": b'{"title": "one", "n": 3}', "b.png": b"b", "b.txt": b"two"}
    with tarfile.open(SEEDS / "shard.tar", "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    rows = {"image": [b"one", b"two", None], "title": ["a", "b", None], "price": [1.5, None, 3.0]}
    pq.write_table(pa.table(rows), SEEDS / "bytes.parquet", row_group_size=2)
    paths = pa.table({"path": ["p0.jpg", "p1.jpg"], "n": [1, 2]})
    pq.write_table(paths, SEEDS / "paths.parquet", compression="none")
    (SEEDS / "metadata.csv").write_text('file_name,title,price\np0.jpg,"a, b",1\np1.jpg,c,2\n')


def picture(mode: str, seed: int = 0) -> Image.Image:
    """A smooth picture of 24 x 16."""
    random = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 1 << 16, (16, 24), dtype=np.uint16))
    small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return small.resize((24, 16), Image.Resampling.BICUBIC).convert(mode)


if __name__ == "__main__":
    main()
