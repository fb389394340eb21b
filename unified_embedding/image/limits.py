"""What one picture, one request and one server may cost, and the settings that say so."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from unified_embedding.errors import ImageError
from unified_embedding.image.formats import FORMATS


@dataclass(frozen=True)
class Limits:
    """What a picture or a request may cost, checked before the work is done.

    Pixels are counted as width x height of the stored picture; see `measure` for what a
    decode costs of them. Every limit has a setting, named in the errors; `SETTINGS` lists them.

    Attributes:
        max_bytes: encoded bytes of one picture.
        max_pixels: pixels of one picture that is decoded in full, and pixels that a JPEG
            keeps once it is decoded at a reduced scale.
        max_jpeg_pixels: pixels of a baseline JPEG, which is decoded at a reduced scale.
        max_progressive_pixels: pixels of a progressive JPEG, whose coefficients are all held
            in memory whatever the scale.
        max_request_bytes: encoded bytes of all pictures of one request.
        max_request_pixels: what the pictures of one request may cost, by `measure`.
        max_pixels_in_work: what the large requests that one model instance has in work or
            waiting may cost (serving/workload.py).
        formats: the formats that are read, of `FORMATS`.
    """

    max_bytes: int = 64_000_000
    max_pixels: int = 50_000_000
    max_jpeg_pixels: int = 200_000_000
    max_progressive_pixels: int = 65_000_000
    max_request_bytes: int = 64_000_000
    max_request_pixels: int = 100_000_000
    max_pixels_in_work: int = 200_000_000
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "formats" and (not isinstance(value, int) or value < 1):
                raise ImageError(f"{setting(field.name)} is not a number of at least 1: {value!r}")
        unknown = sorted(set(self.formats) - set(FORMATS))
        if unknown or not self.formats:
            raise ImageError(
                f"{setting('formats')} names {unknown or 'nothing'}; choose of {', '.join(FORMATS)}"
            )

    @classmethod
    def from_settings(cls, *sources: Mapping[str, str]) -> "Limits":
        """The limits that settings ask for; what none of them names keeps its default.

        Args:
            sources: for instance the `parameters` of a config.pbtxt (`max_image_pixels`) and
                `os.environ` (`UNIFIED_EMBEDDING_MAX_IMAGE_PIXELS`); both spellings are taken
                from each, a later source wins, other names are ignored.

        Raises:
            ImageError: a value is not a number, or not a list of formats joined by commas;
                the message names the setting.
        """
        values: dict[str, Any] = {}
        for source in sources:
            for name, field in SETTINGS.items():
                for spelling in (name, name.removeprefix(PREFIX).lower()):
                    if source.get(spelling, "").strip():
                        values[field] = _parsed(spelling, field, source[spelling].strip())
        return cls(**values)

    @classmethod
    def from_environment(cls) -> "Limits":
        """What the settings in this process' environment ask for. Raises as `from_settings`."""
        return cls.from_settings(os.environ)

    def check_request(self, size: int, pixels: int) -> None:
        """Refuse a request of more bytes or a dearer decode than one request may have.

        Args:
            size: encoded bytes of all its pictures.
            pixels: the sum of `measure` over its pictures.

        Raises:
            ImageError: names the limit and the setting.
        """
        if size > self.max_request_bytes:
            raise ImageError(
                f"the request's images have {size:,} bytes; the limit is "
                f"{self.max_request_bytes:,} ({setting('max_request_bytes')}); "
                "send fewer in a request"
            )
        if pixels > self.max_request_pixels:
            raise ImageError(
                f"decoding the request's images costs {pixels:,} pixels; the limit is "
                f"{self.max_request_pixels:,} ({setting('max_request_pixels')}); "
                "send fewer in a request, or smaller ones"
            )


PREFIX: Final = "UNIFIED_EMBEDDING_"
SETTINGS: Final = {
    f"{PREFIX}MAX_IMAGE_BYTES": "max_bytes",
    f"{PREFIX}MAX_IMAGE_PIXELS": "max_pixels",
    f"{PREFIX}MAX_JPEG_PIXELS": "max_jpeg_pixels",
    f"{PREFIX}MAX_PROGRESSIVE_JPEG_PIXELS": "max_progressive_pixels",
    f"{PREFIX}MAX_REQUEST_BYTES": "max_request_bytes",
    f"{PREFIX}MAX_REQUEST_PIXELS": "max_request_pixels",
    f"{PREFIX}MAX_PIXELS_IN_WORK": "max_pixels_in_work",
    f"{PREFIX}IMAGE_FORMATS": "formats",
}
"""Environment name of each setting -> field of `Limits`. A Triton parameter has the same name
in small letters without the prefix: `max_image_bytes`."""

_NAMES: Final = {field: name for name, field in SETTINGS.items()}


def setting(field: str) -> str:
    """The environment name of a field of `Limits`, for errors."""
    return _NAMES[field]


DEFAULT_LIMITS: Final = Limits()


def _parsed(name: str, field: str, text: str) -> int | tuple[str, ...]:
    if field == "formats":
        return tuple(part.strip().upper() for part in text.split(",") if part.strip())
    try:
        return int(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise ImageError(f"{name} is not a whole number: {text[:80]!r}") from None
