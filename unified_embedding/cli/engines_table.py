"""What each engine does to embeddings and codes, and how fast it is: a table for docs/engines.md.

Every engine embeds the same pictures and is compared with onnxruntime fp32; speeds are taken in
turns in one process. Nothing is installed.
"""

import datetime
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from unified_embedding import onnx_file
from unified_embedding.checkout import RELEASED, ROOT
from unified_embedding.cli.options import failing
from unified_embedding.engine.gates import gates, reference, speed
from unified_embedding.engine.openvino.target import OpenVinoTarget, has_native_bf16
from unified_embedding.engine.tensorrt import fp16_emulation
from unified_embedding.engine.tensorrt import plan as tensorrt_plan
from unified_embedding.gallery import SHOT, Gallery
from unified_embedding.measure.files import between_marks, write_text
from unified_embedding.measure.processor import cpu_name
from unified_embedding.onnx_runner import Runner, on_onnxruntime
from unified_embedding.retrieval import (
    COMPARISONS,
    Comparison,
    Interval,
    bootstrap,
)
from unified_embedding.spec import EmbedderSpec

BATCHES: Final = (1, 16)

console = Console(stderr=True)


@dataclass(frozen=True)
class EngineRow:
    """One engine against fp32.

    Attributes:
        name: target and precision.
        figures: as in the gates.
        recall_change: R@1 minus that of fp32 on the same queries, by comparison.
        same_first: share of queries with the same first answer, by comparison.
    """

    name: str
    figures: gates.Figures
    recall_change: dict[str, Interval]
    same_first: dict[str, float]


@failing("engines_table")
def main(
    model: Annotated[
        Path, typer.Option(help="Folder with embedder.onnx and spec.json.")
    ] = RELEASED,
    gallery: Annotated[Path, typer.Option(help="Labelled pictures.")] = ROOT / "demo",
    into: Annotated[
        Path | None, typer.Option(help="Markdown file whose table for MODEL is replaced.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of an engine's turn.")] = 1.0,
) -> None:
    """Print the table of engines for MODEL, or put it into a document."""
    _, spec = onnx_file.load(model)
    pictures = Gallery.load(gallery)
    pixels = reference.load_gallery(pictures, spec.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        engines = dict(_openvino_engines(model, pixels, Path(folder)))
        by_nncf = OpenVinoTarget("int8", model).calibrated
        console.print("timing")
        speeds = {
            batch: speed.measure(engines, pixels, batch, seconds=seconds) for batch in BATCHES
        }
        if spec.random:
            accuracy = ["Random weights: nothing but the speeds means anything."]
        else:
            compared = {**engines, "FP16, emulated": _emulated(model)}
            accuracy = list(_accuracy(list(_rows(model, pictures, pixels, compared))))
    text = "\n".join([*accuracy, "", *_speeds(speeds), "", _environment(spec, pictures, by_nncf)])
    if into is None:
        print(text)
    else:
        _replace(into, spec.name, text)


def _openvino_engines(
    model: Path, pixels: NDArray[np.uint8], folder: Path
) -> Iterator[tuple[str, Runner]]:
    for precision in ("fp32", *(["bf16"] if has_native_bf16() else []), "int8"):
        console.print(f"compiling {precision}")
        target = OpenVinoTarget(precision, model)
        (folder / precision).mkdir()
        target.compile(model, folder / precision, pixels)
        yield f"OpenVINO {precision}", target.runner(folder / precision)


def _rows(
    model: Path, gallery: Gallery, pixels: NDArray[np.uint8], engines: dict[str, Runner]
) -> Iterator[EngineRow]:
    truth = reference.embed(reference.reference_runner(model), pixels, "onnxruntime fp32")
    for name, run in engines.items():
        rows = reference.embed(run, pixels, name)
        yield EngineRow(
            name,
            gates.measure(truth, rows, gallery, repeatable=True),
            {kind: _recall_change(truth, rows, gallery, kind) for kind in COMPARISONS},
            {kind: _same_first(truth, rows, gallery, kind) for kind in COMPARISONS},
        )


def _emulated(model: Path) -> Runner:
    graph = fp16_emulation.emulate(tensorrt_plan.half_graph(model))
    return on_onnxruntime(graph.SerializeToString())


def _recall_change(
    truth: NDArray[np.float32],
    rows: NDArray[np.float32],
    gallery: Gallery,
    comparison: Comparison,
) -> Interval:
    before, after = (gates.first_hits(each, gallery, comparison) for each in (truth, rows))
    return bootstrap(after - before, [picture.product for picture in gallery.role(SHOT)])


def _same_first(
    truth: NDArray[np.float32],
    rows: NDArray[np.float32],
    gallery: Gallery,
    comparison: Comparison,
) -> float:
    firsts = [gates.similarity(e, gallery, comparison).argmax(axis=1) for e in (truth, rows)]
    return float((firsts[0] == firsts[1]).mean())


def _accuracy(rows: list[EngineRow]) -> Iterator[str]:
    yield (
        "| engine | cosine worst / mean | bits flipped mean / worst image | largest abs(x) flipped "
        "| float top-10 overlap | R@1 float / asymmetric / code "
        "| same first answer float / asymmetric / code |"
    )
    yield "|---|---|---|---|---|---|---|"
    known = rows[0].figures.recall_reference
    yield f"| onnxruntime fp32 | 1 / 1 | 0 / 0 | 0 | 1 | {_joined(known, '{:.3f}')} | 1 / 1 / 1 |"
    for row in rows:
        f = row.figures
        yield (
            f"| {row.name} | {f.cosine_worst:.5f} / {f.cosine_mean:.5f} "
            f"| {f.flips_mean:.3%} / {f.flips_worst:.2%} | {f.flip_at:.3f} | {f.neighbours:.3f} "
            f"| {_joined(f.recall, '{:.3f}')} | {_joined(row.same_first, '{:.3f}')} |"
        )
    yield ""
    yield "| change of R@1 in points, paired, 95 % interval | float | asymmetric | code |"
    yield "|---|---|---|---|"
    for row in rows:
        cells = [
            f"{100 * i.mean:+.1f} [{100 * i.low:+.1f}, {100 * i.high:+.1f}]"
            for i in row.recall_change.values()
        ]
        yield f"| {row.name} | {' | '.join(cells)} |"


def _joined(values: dict[str, float], form: str) -> str:
    return " / ".join(form.format(value) for value in values.values())


def _speeds(speeds: dict[int, dict[str, speed.Speed]]) -> Iterator[str]:
    names = list(speeds[BATCHES[0]])
    baseline = next((name for name in names if name.endswith("bf16")), names[0])
    yield "| engine alone | " + " | ".join(f"images/s at batch {b}" for b in BATCHES) + " |"
    yield "|---|" + "---|" * len(BATCHES)
    for name in names:
        cells = []
        for found in speeds.values():
            rate = found[name].images_per_second
            ratio = rate / found[baseline].images_per_second
            cells.append(f"{rate:.1f} ({ratio:.2f} x {baseline.split()[-1]})")
        yield f"| {name} | {' | '.join(cells)} |"


def _environment(spec: EmbedderSpec, gallery: Gallery, by_nncf: bool) -> str:
    names = ("openvino", *(["nncf"] if by_nncf else []), "onnxruntime")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{spec.name} {spec.version}, {len(gallery.pictures)} pictures (gallery "
        f"{gallery.digest()}); {cpu_name()}, {len(os.sched_getaffinity(0))} cores, "
        f"Python {platform.python_version()}, {packages}; {datetime.date.today().isoformat()}."
    )


def _replace(document: Path, name: str, text: str) -> None:
    """Put `text` between the two marks of `name` in `document`."""
    begin, end = f"<!-- engines: {name} -->", f"<!-- end: {name} -->"
    try:
        filled = between_marks(document.read_text(), begin, end, text)
    except ValueError as error:
        raise typer.BadParameter(f"{document} {error}") from error
    write_text(document, filled)
