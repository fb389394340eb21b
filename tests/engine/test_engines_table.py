"""The table of docs/engines.md, made for a small embedder."""

import re
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from unified_embedding.engine.gates import speed

pytest.importorskip("openvino", reason="the extra `build` is not installed")
pytest.importorskip("nncf", reason="the extra `int8` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

import tiny_embedder as tiny
import typer
from PIL import Image

from unified_embedding import onnx_file
from unified_embedding.cli import engines_table
from unified_embedding.export.quantise import quantised


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Ten products: a colour each, and a shot of it in a slightly different one."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,product,role"]
    for index in range(10):
        colour = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        for role in ("catalogue", "shot"):
            noisy = np.clip(colour + rng.normal(scale=8, size=colour.shape), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).resize((16, 16), 0).save(
                folder / f"{role}{index}.png"
            )
            rows.append(f"{role}{index}.png,p{index},{role}")
    (folder / "gallery.csv").write_text("\n".join(rows))
    return folder


def saved(folder: Path, weights: str) -> Path:
    folder.mkdir()
    model = tiny.tiny_embedder()
    onnx_file.save(model, replace(tiny.spec_of(model), weights=weights), folder)
    return folder


def test_the_table_goes_between_its_marks(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "engines.md"
    document.write_text("before\n<!-- engines: tiny -->\nold\n<!-- end: tiny -->\nafter\n")
    model = saved(tmp_path / "tiny", "made for this test")
    engines_table.main(model, gallery, document, seconds=0.01)
    text = document.read_text()
    assert text.startswith("before\n<!-- engines: tiny -->\n| engine | cosine")
    assert text.endswith("<!-- end: tiny -->\nafter\n")
    assert "old" not in text
    lines = text.splitlines()
    for name in ("OpenVINO fp32", "OpenVINO int8", "FP16, emulated"):
        assert any(line.startswith(f"| {name} |") for line in lines), name
    accuracy = next(line for line in lines if line.startswith("| OpenVINO fp32 |"))
    assert "| 1.00000 / 1.00000 | 0.000% / 0.00% |" in accuracy
    # Every line of a table has as many cells as its head.
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert above.count("|") == below.count("|"), below
    with pytest.raises(typer.BadParameter, match="lacks the marks"):
        engines_table._replace(document, "another", "text")
    assert document.read_text() == text


def test_random_weights_get_speeds_only(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "tiny", "random")
    engines_table.main(model, gallery, None, seconds=0.01)
    printed = capsys.readouterr().out
    assert "nothing but the speeds means anything" in printed
    assert "cosine" not in printed
    assert re.search(r"\| OpenVINO int8 \| [\d.]+ \([\d.]+ x (bf16|fp32)\)", printed)
    assert ", nncf " in printed

    # Made without NNCF, it does not name it.
    graph, spec = onnx_file.load(model)
    onnx_file.save_quantised(quantised(graph, tiny.pixels(32)), spec, model)
    engines_table.main(model, gallery, None, seconds=0.01)
    assert "nncf" not in capsys.readouterr().out


def test_speeds_are_medians_over_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    turns = {"slow": 0, "fast": 0}
    order: list[str] = []

    def engine(name: str, seconds: float):
        def run(pixels: np.ndarray) -> np.ndarray:
            assert len(pixels) == 4
            order.append(name)
            # Every third call of an engine meets a busy machine.
            turns[name] += 1
            now[0] += seconds * (10 if turns[name] % 3 == 0 else 1)
            return np.zeros((4, 8), np.float32)

        return run

    runners = {"slow": engine("slow", 0.25), "fast": engine("fast", 0.125)}
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    found = speed.measure(runners, pixels, 4, rounds=5, seconds=0.01)
    assert order == ["slow", "fast"] * 6
    assert found["slow"].images_per_second == statistics.median([16, 1.6, 16, 16, 1.6])
    assert found["fast"].images_per_second == 32
    assert (found["slow"].milliseconds, found["fast"].milliseconds) == (250, 125)
