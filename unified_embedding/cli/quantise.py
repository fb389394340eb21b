"""`make quantise`: an embedder's convolutions in 8 bits, beside its float graph."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from unified_embedding import onnx_file
from unified_embedding.checkout import RELEASED
from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.datasets.store import data_home
from unified_embedding.engine.gates import gate_table, gates, reference
from unified_embedding.errors import DataError, EmbeddingError, GateError
from unified_embedding.export import pictures
from unified_embedding.export.quantise import quantised
from unified_embedding.gallery import Gallery
from unified_embedding.image import Preprocessing
from unified_embedding.onnx_runner import Runner, on_onnxruntime

console = Console()


def main(
    model: Annotated[
        Path, typer.Option(help="Folder with embedder.onnx and spec.json.")
    ] = RELEASED,
    manifest: Annotated[
        Path | None, typer.Option(help="Pictures, as `make data` prepares them.")
    ] = None,
    images: Annotated[int, typer.Option(min=16, help="Training pictures it is fitted to.")] = 64,
    held_out: Annotated[int, typer.Option(min=16, help="Test pictures it is judged by.")] = 256,
) -> None:
    """Write `embedder.int8.onnx` beside `embedder.onnx`, if it holds the gates of int8.

    Fitted to pictures of the manifest's split "train", judged by those of "test": by exact sums,
    as a CPU with VNNI adds, or any CPU weights of 7 bits.
    """
    try:
        graph, spec = onnx_file.load(model)
        table = manifest or data_home() / "manifest.csv"
        if not table.is_file():
            raise DataError(f"{table} does not exist; `make data` prepares it (or --manifest ...)")
        rows = read_manifest(table, check_files=False)
        fitted, judged = (
            _pixels(table, rows, split, count, spec.preprocessing)
            for split, count in (("train", images), ("test", held_out))
        )
        found = quantised(graph, fitted, progress=_track)
        truth = reference.embed(reference.reference_runner(model), judged, "fp32")
        rows_found = reference.embed(exact(found), judged, "int8")
        figures = gates.measure(truth, rows_found, Gallery(model, ()), repeatable=True)
        if not gate_table.report(console, figures, spec, "int8"):
            raise GateError("a gate of int8 failed; nothing was written")
        path = onnx_file.save_quantised(found, spec, model)
    except EmbeddingError as error:
        console.print(f"[bold red]not quantised:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    console.print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True)


def exact(model: onnx.ModelProto) -> Runner:
    """A quantised graph on onnxruntime with every sum in fp32, none in 16-bit integers.

    Unoptimised, it computes what the file says: it dequantises before it convolves.
    """
    return on_onnxruntime(model.SerializeToString(), optimised=False)


def _pixels(
    table: Path, rows: list[dict[str, str]], split: str, count: int, preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    names = sorted({row["image"] for row in rows if row["split"] == split})
    if len(names) < 2:
        raise DataError(f"{table} has {len(names)} pictures of the split {split}; 2 are needed")
    chosen = pictures.spread([table.parent / name for name in names], count)
    return pictures.read(chosen, preprocessing)


def _track(nodes: list[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    return track(nodes, "quantising", console=console, transient=True)
