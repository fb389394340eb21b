import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from unified_embedding.errors import ImageError
from unified_embedding.image import (
    Box,
    Limits,
    Preprocessing,
    decode,
    load_pixels,
    parse_crops,
)

LETTERBOX = Preprocessing()
LOSSLESS = ("PNG", "WEBP", "BMP", "TIFF")


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def letterboxed(image: Image.Image, size: int = 224) -> np.ndarray:
    """The definition, written once more with Pillow's own helper."""
    padded = ImageOps.pad(
        image.convert("RGB"), (size, size), Image.Resampling.BILINEAR, color=(255, 255, 255)
    )
    return np.asarray(padded)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_letterboxed_pixels(kind: str) -> None:
    image = picture(301, 187)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(
        load_pixels(encoded(image, kind, **options), LETTERBOX), letterboxed(image)
    )


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("GIF", {})])
def test_lossy_formats_are_close(kind: str, options: dict[str, int]) -> None:
    image = picture(301, 187)
    pixels = load_pixels(encoded(image, kind, **options), LETTERBOX).astype(int)
    assert np.abs(pixels - letterboxed(image)).mean() < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    image = picture(120, 80)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert upright.size == ((120, 80) if orientation < 5 else (80, 120))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_hide_the_picture() -> None:
    data = encoded(picture(40, 30), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data).size == (40, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_modes_without_alpha_equal_their_rgb(mode: str, kind: str) -> None:
    image = picture(50, 40, mode)
    assert np.array_equal(
        np.asarray(decode(encoded(image, kind))), np.asarray(image.convert("RGB"))
    )


def test_cmyk_jpeg_reads_as_rgb() -> None:
    image = picture(64, 48)
    data = encoded(image.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(decode(data)).astype(int) - np.asarray(image)).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_high_byte(kind: str) -> None:
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    data = encoded(Image.fromarray(grey), kind)
    assert np.array_equal(np.asarray(decode(data))[..., 0], (grey >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    image = picture(8, 8).convert(mode)
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 128
    image.putalpha(Image.fromarray(alpha))
    pixels = np.asarray(decode(encoded(image, "PNG"))).astype(float)
    colour = np.asarray(image.convert("RGBA"))[..., :3]
    expected = colour * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels[:, :4] == 255).all()


def test_transparent_palette_and_colour_key_are_white() -> None:
    palette = picture(8, 8, "P")
    key = palette.getpixel((0, 0))
    data = encoded(palette, "GIF", transparency=key)
    assert np.asarray(decode(data))[0, 0].tolist() == [255, 255, 255]
    flat = Image.new("RGB", (4, 4), (10, 20, 30))
    assert (np.asarray(decode(encoded(flat, "PNG", transparency=(10, 20, 30)))) == 255).all()


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(data))[0, 0].tolist() == [255, 0, 0]


@given(width=st.integers(1, 900), height=st.integers(1, 900), size=st.sampled_from([16, 224]))
@settings(max_examples=40, deadline=None)
def test_letterbox_border_cases(width: int, height: int, size: int) -> None:
    pixels = load_pixels(encoded(Image.new("RGB", (width, height)), "BMP"), Preprocessing(size))
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    dark = (pixels[..., 0] == 0).sum(axis=0).max(), (pixels[..., 0] == 0).sum(axis=1).max()
    scale = size / max(width, height)
    assert abs(dark[0] - max(1, height * scale)) <= 1
    assert abs(dark[1] - max(1, width * scale)) <= 1


@pytest.mark.parametrize("shape", [(9000, 1), (1, 9000)])
def test_extreme_aspect_in_both_resize_modes(shape: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", shape), "PNG")
    for mode in (LETTERBOX, Preprocessing(resize="center_crop")):
        assert load_pixels(data, mode).shape == (224, 224, 3)


def test_center_crop_takes_the_central_square() -> None:
    image = Image.new("RGB", (512, 256), "red")
    image.paste("blue", (128, 0, 384, 256))
    pixels = load_pixels(encoded(image, "PNG"), Preprocessing(resize="center_crop"))
    assert (pixels == (0, 0, 255)).all()


@pytest.mark.parametrize("resize", ["letterbox", "center_crop"])
def test_draft_decoding_stays_close_to_full_decoding(resize: str) -> None:
    mode = Preprocessing(resize=resize)  # type: ignore[arg-type]
    image = picture(1600, 1200)
    fast = load_pixels(encoded(image, "JPEG", quality=95), mode).astype(int)
    full = load_pixels(encoded(image, "PNG"), mode).astype(int)
    assert np.abs(fast - full).mean() < 2


def test_draft_scale_follows_the_crop() -> None:
    """A small crop of a large JPEG must not be decoded at a scale that loses its detail."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (1792, 1792), dtype=np.uint8)).convert("RGB")
    box = Box(0.25, 0.25, 0.375, 0.375)
    pixels = load_pixels(encoded(noise, "JPEG", quality=95), LETTERBOX, box).astype(int)
    exact = load_pixels(encoded(noise.crop((448, 448, 672, 672)), "PNG"), LETTERBOX).astype(int)
    assert np.abs(pixels - exact).mean() < 8


@given(
    st.integers(2, 60),
    st.integers(2, 60),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
)
@settings(max_examples=60, deadline=None)
def test_crop_equals_the_cropped_pixels(
    width: int, height: int, x: float, y: float, dx: float, dy: float
) -> None:
    box = Box(x, y, min(1.0, x + dx), min(1.0, y + dy))
    image = picture(width, height)
    left, top, right, bottom = box.pixels(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    cropped = encoded(image.crop((left, top, right, bottom)), "PNG")
    whole = encoded(image, "PNG")
    assert np.array_equal(load_pixels(whole, LETTERBOX, box), load_pixels(cropped, LETTERBOX))


def test_crop_is_of_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turn by 90 degrees clockwise
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))  # left half stored = upper half upright
    data = encoded(image, "PNG", exif=exif)
    assert (np.asarray(decode(data, Box(0, 0, 1, 0.5))) == (0, 0, 255)).all()


def test_bad_input_says_what_is_wrong() -> None:
    good = encoded(picture(200, 100), "JPEG")
    cases = {
        b"": "empty",
        b"hello, world": "not an image",
        good[: len(good) // 2]: "truncated or corrupt",
        b"\x00" * 5000: "not an image",
        encoded(picture(8, 8), "ICO"): "not an image",
    }
    for data, reason in cases.items():
        with pytest.raises(ImageError, match=reason):
            load_pixels(data, LETTERBOX)


def test_limits_hold_before_decoding() -> None:
    data = encoded(picture(100, 60), "PNG")
    with pytest.raises(ImageError, match=r"100 x 60 = 6,000 pixels; the limit is 5,999"):
        load_pixels(data, LETTERBOX, limits=Limits(max_pixels=5_999))
    load_pixels(data, LETTERBOX, limits=Limits(max_pixels=6_000))
    with pytest.raises(ImageError, match="the limit is"):
        load_pixels(data, LETTERBOX, limits=Limits(max_bytes=len(data) - 1))
    # A header that promises 60,000 x 60,000 pixels with no data behind it.
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with pytest.raises(
        ImageError, match="60000 x 60000 = 3,600,000,000 pixels; the limit is 50,000,000"
    ):
        load_pixels(bomb, LETTERBOX)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_never_raise_anything_else(data: st.DataObject) -> None:
    kinds = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
    kind = data.draw(st.sampled_from(kinds + ["AVIF"] * features.check("avif")))
    good = bytearray(encoded(picture(40, 30), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(good)))
    with contextlib.suppress(ImageError):
        pixels = load_pixels(bytes(good[:end]), LETTERBOX, limits=Limits(max_pixels=10**6))
        assert pixels.shape == (224, 224, 3)


def test_parse_crops() -> None:
    one = Box(0.1, 0.2, 0.5, 1)
    assert parse_crops("0.1,0.2,0.5,1", 3) == [one] * 3
    assert parse_crops("0.1,0.2,0.5,1; ;0,0,1,1", 3) == [one, None, Box(0, 0, 1, 1)]
    assert parse_crops(str(one), 1) == [one]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not four numbers"),
        ("0,0,1", "not four numbers"),
        ("a,b,c,d", "not four numbers"),
        ("0,0,1,1;0,0,1,1", "2 boxes for 3 pictures"),
        ("0.5,0,0.5,1", "not a box"),
        ("0,0,1.5,1", "not a box"),
        ("nan,0,1,1", "not a box"),
        ("-0.1,0,1,1", "not a box"),
    ],
)
def test_bad_crops_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        parse_crops(text, 3)


def test_bad_preprocessing_is_refused() -> None:
    for change in ({"size": 0}, {"resize": "squash"}, {"interpolation": "x"}, {"crop_pct": 0}):
        with pytest.raises(ImageError):
            Preprocessing(**change)  # type: ignore[arg-type]
