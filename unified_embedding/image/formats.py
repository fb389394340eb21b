"""Which formats are read, and by which suffixes and first bytes a file is known."""

import re
from typing import Final

from unified_embedding.errors import ImageError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")
"""What the library can read. HEIC needs the extra `heic`."""

SUFFIXES: Final = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".webp",
    ".gif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
    ".hif",
)
"""What the names of picture files end with, in small letters."""

_READ: Final = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"II\x2a\0|MM\0\x2a|II\x2b\0|MM\0\x2b", "TIFF"),
)
# What people send instead, and what helps.
_KNOWN: Final = (
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (rb"\0\0\0\x0cjP|\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"II\xbc\x01", "a JPEG XR picture"),
    (rb"8BPS", "a Photoshop document"),
    (rb"\0\0[\x01\x02]\0.\0", "an icon or cursor"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document"),
    (rb"P[1-7f][\s#]", "a PNM picture"),
    (rb"qoif", "a QOI picture"),
    (rb"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (rb"#\?RADIANCE", "a Radiance HDR picture"),
    (rb"DDS ", "a DDS texture"),
    (rb"FUJIFILM|IIU\0|IIRO|MMOR", "a camera's raw file"),
    (rb"....ftyp(?:crx )", "a camera's raw file"),
    (rb"....ftyp", "a video or another ISO media file"),
    (rb"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (rb"RIFF....AVI ", "an AVI video"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb"\0\x05\x16[\x00\x07]", "the AppleDouble companion of a Mac's file"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
    (rb".{128}DICM", "a DICOM picture"),
)
_TEXTS: Final = (
    (rb"data:", "a data URL; send the bytes it holds, decoded from base64"),
    (
        rb"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-3]|SUkqA|TU0AK|AAAA.{2}Z0eX)[\w+/=\r\n-]*$",
        "base64 text; send the bytes it holds, over HTTP as binary data and not in JSON",
    ),
    (rb"https?://\S+", "an address; send the picture it leads to"),
    (rb"(?:<\?xml.*?)?(?:<!--.*?-->\s*)*(?:<!DOCTYPE svg.*?)?<svg", "an SVG drawing"),
    (rb"<!doctype html|<html|<head|<body", "an HTML page, perhaps of an error"),
    (rb"<\?xml|<Error", "an XML document, perhaps of an error"),
    (rb"\{\s*\"|\[\s*[\{\"\[]", "JSON, perhaps of an error"),
)
_HEAD: Final = 1024
_AVIF_BRANDS: Final = {b"avif", b"avis"}
_HEIC_BRANDS: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def identify(data: bytes, formats: tuple[str, ...]) -> str:
    """The format of `data` by its first bytes, one of `formats`.

    Raises:
        ImageError: another format, by name where it is a known one.
    """
    found = _format(data[:_HEAD])
    if found in formats:
        return found
    wanted = f"send {', '.join(formats)}"
    if found is not None:
        raise ImageError(
            f"{found} is not among the formats this server is set to read "
            f"(UNIFIED_EMBEDDING_IMAGE_FORMATS); {wanted}"
        )
    known = _known(data[:_HEAD])
    if known is not None:
        raise ImageError(f"not an image this server reads but {known}; {wanted}")
    raise ImageError(f"not an image this server reads (first bytes {bytes(data[:8])!r}); {wanted}")


def _format(head: bytes) -> str | None:
    for pattern, name in _READ:
        if re.match(pattern, head, re.DOTALL):
            return name
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
        # The major brand decides; a general one (mif1) leaves it to the compatible ones.
        for candidates in ({head[8:12]}, brands):
            if candidates & _AVIF_BRANDS:
                return "AVIF"
            if candidates & (_HEIC_BRANDS - {b"mif1", b"msf1"}):
                return "HEIC"
    return None


def _known(head: bytes) -> str | None:
    for pattern, name in _KNOWN:
        if re.match(pattern, head, re.DOTALL):
            return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in _TEXTS:
        if re.match(pattern, text, re.DOTALL | re.IGNORECASE):
            return name
    return None
