"""Emoji designs on made-up packages: names, aliases, families, equal pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from made_up_emoji import COLORS, icons, pictures
from PIL import Image

from unified_embedding.datasets import emoji
from unified_embedding.errors import DataError

SHAPES = {"twemoji": "square", "noto": "circle", "openmoji": "bar", "fluent-flat": "square"}


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    made = {design: icons(tmp_path / f"{design}.tgz", shape) for design, shape in SHAPES.items()}
    return {**made, "fluent-3d": pictures(tmp_path / "3d.tgz")}


def test_designs_draw_the_common_concepts(packages: dict[str, Path]) -> None:
    drawn = emoji.read_designs(packages)
    assert set(drawn) == {*SHAPES, "fluent-3d"}
    for design in SHAPES:
        assert list(drawn[design]) == sorted([*COLORS, "mirrored-ball"])
    assert list(drawn["fluent-3d"]) == sorted(COLORS)


def test_raster_shows_the_icon_on_nothing(packages: dict[str, Path]) -> None:
    pytest.importorskip("resvg_py", reason="rasterising needs resvg-py (the extra `train`)")
    drawn = emoji.read_designs(packages)
    image = np.asarray(Image.open(io.BytesIO(emoji.rasterise(drawn["twemoji"]["apple"]))))
    assert image.shape == (emoji.SIDE, emoji.SIDE, 4)
    assert tuple(image[112, 112]) == (0, 255, 0, 255)
    assert image[0, 0, 3] == 0
    bar = emoji.rasterise(drawn["openmoji"]["ball"])
    mirrored = emoji.rasterise(drawn["openmoji"]["mirrored-ball"])
    flipped = np.asarray(Image.open(io.BytesIO(mirrored)))[:, ::-1]
    np.testing.assert_array_equal(flipped, np.asarray(Image.open(io.BytesIO(bar))))


def test_pictures_pass_through(packages: dict[str, Path]) -> None:
    drawing = emoji.read_designs(packages)["fluent-3d"]["ball"]
    assert isinstance(drawing, bytes)
    assert emoji.rasterise(drawing) == drawing
    assert (emoji.suffix(drawing), emoji.suffix("<svg/>")) == ("webp", "png")


def test_concepts_need_the_common_designs(packages: dict[str, Path]) -> None:
    del packages["noto"]
    with pytest.raises(DataError, match="noto"):
        emoji.read_designs(packages)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("man-cook", "woman-cook"),
        ("cook", "man-cook"),
        ("one-oclock", "twelve-thirty"),
        ("keycap-1", "keycap-asterisk"),
        ("left-arrow", "up-down-arrow"),
        ("person-walking", "woman-walking-facing-right"),
        ("mens-room", "womens-room"),
        ("red-heart", "light-blue-heart"),
        ("magnifying-glass-tilted-left", "magnifying-glass-tilted-right"),
        ("man", "person"),
        ("taxi", "oncoming-taxi"),
    ],
)
def test_variants_share_a_family(one: str, other: str) -> None:
    assert emoji.family(one) == emoji.family(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("cat", "dog"), ("mantelpiece-clock", "alarm-clock"), ("man-cook", "man-pilot")],
)
def test_different_things_do_not(one: str, other: str) -> None:
    assert emoji.family(one) != emoji.family(other)


def picture(color: tuple[int, int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (4, 4), color).save(out, "PNG")
    return out.getvalue()


def test_equal_pixels_merge_classes_and_families() -> None:
    red, blue = picture((255, 0, 0, 255)), picture((0, 0, 255, 255))
    drawn = {"one": {"cat": red, "lynx": red, "cook": blue}, "two": {"man-cook": red, "cat": blue}}
    alike = emoji.alike_groups(drawn)
    assert alike == [["cat", "lynx"]]
    alike += [["lynx", "man-cook"]]
    names = ["cat", "lynx", "cook", "man-cook", "dog"]
    classes, families = emoji.merge_classes(names, alike), emoji.merge_families(names, alike)
    assert classes == {"cat": "cat", "lynx": "cat", "man-cook": "cat", "cook": "cook", "dog": "dog"}
    assert len({families[name] for name in names[:4]}) == 1
    assert families["dog"] != families["cat"]


def test_what_is_fully_transparent_does_not_count() -> None:
    drawn = {"one": {"a": picture((9, 9, 9, 0)), "b": picture((200, 0, 0, 0))}}
    assert emoji.alike_groups(drawn) == [["a", "b"]]
