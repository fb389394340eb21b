"""The libraries that decode: Pillow's plugins, and pi-heif where the extra `heic` is installed."""

import contextlib
import ctypes
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from unified_embedding.errors import ImageError
from unified_embedding.image.container import Container, corrupt

# The plugins themselves, not Image.open: that knows one limit of pixels for all formats.
_PLUGINS: Final[dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}


def opened(container: Container, data: bytes, draft: tuple[int, int] | None) -> Image.Image:
    """Decode the container's file `data`; a JPEG at the scale that `draft` allows.

    Raises:
        ImageError: the decoder is not installed, or finds another size than the header stated.
        Exception: whatever the decoder raises.
    """
    if container.format == "WEBP":
        return _webp(container, data)
    if container.format == "AVIF":
        return _avif(container, data)
    if container.format == "HEIC":
        return _heic(container, data)
    if container.format == "TIFF":
        _quiet_libtiff()
    image = _PLUGINS[container.format](io.BytesIO(data))
    _check(container, image.size)
    if draft is not None:
        image.draft(None, draft)
    image.load()
    return image


@lru_cache(maxsize=1)
def _quiet_libtiff() -> None:
    """Take libtiff's messages off stderr, where every damaged file writes a few lines.

    Pillow raises for the same faults, but offers no switch: whoever may send pictures could
    fill the server's log. Without a libtiff of its own among the loaded files nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        maps = Path("/proc/self/maps").read_text().splitlines()
        for path in {line.split(maxsplit=5)[-1] for line in maps if "libtiff" in line}:
            library = ctypes.CDLL(path)
            for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                handler(None)


def _check(container: Container, size: tuple[int, int]) -> None:
    if size != (container.width, container.height):
        raise corrupt(container.format, f"its parts state different sizes, {size[0]} x {size[1]}")


def _webp(container: Container, data: bytes) -> Image.Image:
    """The first frame.

    The plugin's `load` would hold libwebp's two canvases beside two copies of the picture:
    four times a JPEG of as many pixels.
    """
    plugin = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    _check(container, plugin.size)
    mode = plugin.rawmode
    frame = plugin._get_next()[0]
    del plugin
    picture = Image.frombuffer(mode, (container.width, container.height), frame, "raw", mode, 0, 1)
    return picture.convert("RGB") if mode == "RGBX" else picture


def _avif(container: Container, data: bytes) -> Image.Image:
    if not features.check("avif"):
        raise ImageError(
            "AVIF images are not read by the Pillow that is installed; install pillow>=11.3"
        )
    from PIL import AvifImagePlugin

    image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    _check(container, image.size)
    image.load()
    image._decoder = None  # It holds the planes that the picture was made of.
    return image


def _heic(container: Container, data: bytes) -> Image.Image:
    try:
        import pi_heif
    except ImportError:
        raise ImageError(
            "HEIC images are read with the extra heic, which is not installed here: "
            "pip install 'unified-embedding[heic]', or send JPEG"
        ) from None
    file = pi_heif.open_heif(data, convert_hdr_to_8bit=True)
    width, height = file.size
    if width * height > container.width * container.height:
        raise corrupt("HEIC", f"its parts state different sizes, {width} x {height}")
    picture: Image.Image = file.to_pillow()
    return picture
