"""Pictures in JSON: data URLs, and objects {"image": ..., "crop": [x0, y0, x1, y1]}.

The base64 text is decoded where it lies in the body; no copy of a picture is made on the way
through JSON.
"""

import binascii
from typing import Annotated, Final

import msgspec
import pybase64
from msgspec import Meta

from unified_embedding.api.problems import ApiError
from unified_embedding.errors import ImageError, shown
from unified_embedding.image import Box

MAX_IMAGES: Final = 256
_FORM: Final = (
    'send a data URL ("data:image/jpeg;base64,...") or {"image": base64, "crop": [x0, y0, x1, y1]}'
)
_BLOCK: Final = 1 << 16
_WHITE: Final = str.maketrans("", "", " \t\r\n")


_STRING: Final = {"type": "string"}
_Fraction = Annotated[float, Meta(extra_json_schema={"minimum": 0, "maximum": 1})]
Crop = Annotated[
    tuple[_Fraction, _Fraction, _Fraction, _Fraction],
    Meta(description="x0, y0, x1, y1 as fractions of the upright picture."),
]


class ImageObject(msgspec.Struct, forbid_unknown_fields=True):
    """A picture, and which part of it is meant."""

    image: Annotated[
        msgspec.Raw, Meta(description="Base64, or a data URL.", extra_json_schema=_STRING)
    ]
    crop: Crop | None = None


PICTURE: Final = {
    "anyOf": [
        {
            **_STRING,
            "pattern": "^data:[^,]*;base64,",
            "description": "data:image/jpeg;base64,...",
        },
        {"$ref": "#/components/schemas/ImageObject"},
    ]
}
"""A picture in JSON, as OpenAPI says it."""


class Picture(msgspec.Struct):
    """One picture of a request.

    Attributes:
        data: the encoded picture.
        crop: the part of it to embed; None for all of it.
    """

    data: bytes
    crop: Box | None = None


def parse_input(raw: msgspec.Raw) -> list[Picture]:
    """The pictures of the field `input`: one or a list. Raises ApiError naming the index."""
    text = memoryview(raw)
    if bytes(text[:1]) != b"[":
        return [parse_picture(raw, "input")]
    items = msgspec.json.decode(raw, type=list[msgspec.Raw])
    if not items:
        raise ApiError(400, f"input is an empty list; {_FORM}", "empty_input", "input")
    if len(items) > MAX_IMAGES:
        raise ApiError(
            400, f"input has {len(items):,} pictures; send at most {MAX_IMAGES} in a request",
            "too_many_images", "input",
        )  # fmt: skip
    return [parse_picture(item, f"input[{index}]") for index, item in enumerate(items)]


def parse_picture(raw: msgspec.Raw, param: str) -> Picture:
    """One picture. Raises ApiError with `param`."""
    text = memoryview(raw)
    kind = bytes(text[:1])
    if kind == b'"':
        return Picture(_decoded(text, param, bare=False))
    if kind != b"{":
        raise ApiError(400, f"{param}: this embedder sees pictures only; {_FORM}", "not_an_image",
                      param)  # fmt: skip
    try:
        found = msgspec.json.decode(raw, type=ImageObject)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"{param}: {error}; {_FORM}", "invalid_input", param) from None
    data = memoryview(found.image)
    if bytes(data[:1]) != b'"':
        raise ApiError(
            400, f"{param}.image is not a string; {_FORM}", "invalid_input", f"{param}.image"
        )
    crop = None
    if found.crop is not None:
        try:
            crop = Box(*found.crop)
        except ImageError as error:
            raise ApiError(400, f"{param}: {error}", "invalid_crop", f"{param}.crop") from None
    return Picture(_decoded(data, param, bare=True), crop)


def _decoded(quoted: memoryview, param: str, bare: bool) -> bytes:
    """The bytes of a JSON string: a data URL, or base64 alone where `bare`."""
    text: memoryview | str = quoted[1:-1]
    start = bytes(quoted[1:-1][:256])
    if _is_escaped(quoted):  # PHP writes "\\/", and some encoders break lines.
        text = str(msgspec.json.decode(bytes(quoted))).translate(_WHITE)
        start = text[:256].encode("utf-8", "replace")
    lowered = start.lower()
    if lowered.startswith(b"data:"):
        comma = start.find(b",")
        if comma < 0 or not lowered[:comma].endswith(b";base64"):
            raise ApiError(
                400, f"{param}: {shown(start[:60].decode('utf-8', 'replace'))} is a data URL "
                "without ;base64,", "invalid_data_url", param,
            )  # fmt: skip
        text = text[comma + 1 :]
    elif lowered.startswith((b"http:", b"https:", b"ftp:", b"file:", b"s3:", b"gs:")):
        raise ApiError(
            400, f"{param}: addresses of pictures are not fetched by this server; fetch it "
            "yourself and send its bytes as a data URL", "url_not_fetched", param,
        )  # fmt: skip
    elif not bare:
        raise ApiError(
            400, f"{param}: {shown(start[:60].decode('utf-8', 'replace'))} is text, and this "
            f"embedder sees pictures only; {_FORM}", "not_an_image", param,
        )  # fmt: skip
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400, f"{param}: not valid base64 ({error})", "invalid_base64", param
        ) from None


def _is_escaped(quoted: memoryview) -> bool:
    """Whether a JSON string holds a backslash; looked for in blocks, since a picture is large."""
    return any(b"\\" in bytes(quoted[at : at + _BLOCK]) for at in range(0, len(quoted), _BLOCK))
