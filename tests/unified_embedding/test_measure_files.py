"""Pictures to send, result files and plots."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from unified_embedding.errors import PicturesError
from unified_embedding.measure import pictures
from unified_embedding.measure.files import write_csv, write_json
from unified_embedding.measure.plots import Axis, Series, line_chart
from unified_embedding.measure.report import verdict


def test_the_mix_has_many_sizes_and_formats_and_follows_its_seed() -> None:
    mix = pictures.load("mix", 5)
    opened = [Image.open(io.BytesIO(data)) for data in mix]
    assert {image.format for image in opened} == {"JPEG", "PNG", "WEBP"}
    assert len({image.size for image in opened}) == 7
    pictures.generated_mix.cache_clear()
    assert pictures.load("mix", 5) == mix
    assert pictures.load("mix", 6) != mix


def test_a_folder_is_sent_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert pictures.load(str(tmp_path), 0) == (b"a.png", b"b.JPG")
    with pytest.raises(PicturesError, match="holds no picture"):
        pictures.load(str(tmp_path / "nowhere"), 0)


def test_scaled_pictures_are_jpegs_of_that_size(root: Path) -> None:
    scaled = pictures.scaled(str(root / "demo" / "shots"), 64, 48)
    assert len(scaled) == len(pictures.folder(str(root / "demo" / "shots")))
    image = Image.open(io.BytesIO(scaled[0]))
    assert (image.format, image.size) == ("JPEG", (64, 48))


def test_results_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "r.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "r.json", {"a": object()})
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == {"a": 1}
    write_csv(tmp_path / "new" / "r.csv", ["x", "y"], [[1, "a,b"]])
    assert (tmp_path / "new" / "r.csv").read_text() == 'x,y\n1,"a,b"\n'
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["r.csv", "r.json"]


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """The corners of every series' line, in the chart's points, by series."""
    found = {}
    for item in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"):
        colour = re.search(r"stroke: (#\w+)", item.get("style", ""))
        if colour and "clip-path" in item.attrib and "fill: none" in item.attrib["style"]:
            corners = re.findall(r"[ML] (\S+) (\S+)", item.attrib["d"])
            found[colour[1]] = [(float(x), float(y)) for x, y in corners]
    return list(found.values())


def test_a_chart_draws_every_point_where_its_axes_say() -> None:
    series = [Series("a < b", [(1, 10), (2, 20), (3, 40)]), Series("c", [(1, 0), (3, 5), (4, 6)])]
    first, second = lines(line_chart("t", Axis("x"), Axis("y", log=True), series))
    # Equal ratios are equal distances on a logarithmic axis, upwards.
    assert first[0][1] - first[1][1] == pytest.approx(first[1][1] - first[2][1], abs=0.2)
    assert first[0][1] > first[2][1]
    assert first[1][0] - first[0][0] == pytest.approx(first[2][0] - first[1][0], abs=0.2)
    # Nothing to draw for 0 on a logarithmic axis.
    assert len(second) == 2
    assert line_chart("t", Axis("x"), Axis("y"), [Series("none", [])]) == ""
    [flat] = lines(line_chart("t", Axis("x"), Axis("y"), [Series("flat", [(1, 0), (2, 0)])]))
    assert flat[0][1] == flat[1][1]


def test_a_chart_names_its_axes_keeps_its_legend_inside_and_follows_light_and_dark() -> None:
    name = "a rather long name for a single line of it"
    series = [Series(name, [(1, 1), (2, 100)])] + [
        Series(str(n), [(1, 2), (3, 4)]) for n in range(6)
    ]
    text = line_chart("a < b", Axis("x"), Axis("ms", log=True), series)
    chart = ElementTree.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    texts = {item.text: item for item in chart.iter(f"{svg}text")}
    assert {"ms, logarithmic", "x", "a < b"} <= set(texts)
    end = float(texts[name].attrib["x"]) + ImageFont.load_default(9).getlength(name)
    assert end <= float(chart.attrib["width"].removesuffix("pt"))
    assert len(lines(text)) == 6  # and the seventh has the text's colour
    assert "stroke: currentColor; stroke-width: 1.5" in text
    assert "prefers-color-scheme:dark" in text
    assert text == line_chart("a < b", Axis("x"), Axis("ms", log=True), series)
    with pytest.raises(ValueError, match="8 series cannot be told apart"):
        line_chart("t", Axis("x"), Axis("y"), [*series, series[0]])


@pytest.mark.parametrize(
    ("completed", "failed", "dropped", "held", "good", "sentence"),
    [
        (9, 0, 0, None, True, "all 9 requests were answered"),
        (9, 0, 0, True, True, "the SLO of 99 % within 50 ms was held"),
        (9, 0, 0, False, False, "the SLO of 99 % within 50 ms was NOT held"),
        (7, 1, 1, True, False, "2 of 9 requests failed or were dropped"),
        (0, 9, 0, None, False, "no request was answered"),
    ],
)
def test_a_report_begins_with_its_verdict(
    completed: int, failed: int, dropped: int, held: bool | None, good: bool, sentence: str
) -> None:
    record = {"offered": 9, "completed": completed, "failed": failed, "dropped": dropped}
    slo = {} if held is None else {"slo": {"p99_ms": 50.0, "held": held}}
    told, words = verdict({**record, **slo})
    assert told is good
    assert sentence in words
