"""What the reader of a format tells about a file, before any pixel is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from unified_embedding.errors import ImageError

Buffer = bytes | memoryview
Finish = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Container:
    """A file's header, and those of its parts that its pixels need.

    Decoders get `parts` only: what else a file holds (text, thumbnails, EXIF, further frames)
    costs nothing and can damage nothing.

    Attributes:
        format: one of `FORMATS`.
        width, height: of the stored picture, before it is turned upright.
        parts: joined, a file of the same format and pixels.
        orientation: 1 to 8, as EXIF counts (tag 274).
        profile: the ICC profile, empty when there is none.
        scalable: a JPEG that libjpeg can decode at a reduced scale.
        progressive: a JPEG whose coefficients are all held in memory.
        tails: endings to try when the file has none; see `jpeg.tails`.
        planes: coded pictures of this size that are decoded: 2 where the transparency is one.
        finish: brings a decoded picture to what the file says where Pillow does not: same size,
            in a mode of 8 bits a channel.
    """

    format: str
    width: int
    height: int
    parts: Sequence[Buffer]
    orientation: int = 1
    profile: bytes = b""
    scalable: bool = False
    progressive: bool = False
    tails: Sequence[bytes] = ()
    planes: int = 1
    finish: Finish | None = None

    @property
    def pixels(self) -> int:
        """Pixels of the stored picture, which bound what its decoding costs."""
        return self.width * self.height * self.planes

    def file(self) -> bytes:
        """The parts as one file."""
        part = self.parts[0]
        return part if len(self.parts) == 1 and isinstance(part, bytes) else b"".join(self.parts)


def corrupt(format: str, what: object) -> ImageError:
    """The error of a file whose structure is broken."""
    return ImageError(f"the {format} image is truncated or corrupt ({what})")


def unread(format: str, layout: str) -> ImageError:
    """The error of a sound file whose layout is not read."""
    return ImageError(
        f"{format} images with {layout} are not read; save it as PNG or JPEG with 8 bits a channel"
    )
