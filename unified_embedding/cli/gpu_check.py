"""`make gpu-check`: everything that needs an NVIDIA GPU, in one command, into one document.

Builds the plan, holds it against the gates, serves it with Triton, looks for stale or
inconsistent answers with and without CUDA graphs, times engine and server, and runs the
end-to-end tests. Writes docs/gpu-results/<gpu>.md.
"""

import datetime
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from unified_embedding.checkout import RELEASED, ROOT
from unified_embedding.client import EmbedderClient, ServerInfo
from unified_embedding.engine import building, targets
from unified_embedding.engine.gates import (
    gate_table,
    gates,
    reference,
    server_checks,
    server_gate,
    speed,
)
from unified_embedding.engine.tensorrt import gpu
from unified_embedding.engine.tensorrt import library as tensorrt_library
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.errors import BuildError, EmbeddingError
from unified_embedding.gallery import Gallery
from unified_embedding.measure.files import write_text
from unified_embedding.names import DEFAULT
from unified_embedding.serving import local_server
from unified_embedding.serving.repository import assemble, static_models
from unified_embedding.spec import EmbedderSpec

RESULTS: Final = ROOT / "docs" / "gpu-results"
COMPOSE: Final = ROOT / "deploy" / "compose.yaml"
IMAGE_COMMAND: Final = (".venv/bin/python", "build/gpu_check.py")
BATCHES: Final = (1, 2, 4, 8, 16)
LOADS: Final = ((1, 1), (4, 1), (16, 1), (64, 1), (8, 16))
"""(requests in flight, pictures in each)."""

console = Console(stderr=True)


@dataclass(frozen=True)
class Findings:
    """What was found out about one embedder on one machine.

    Attributes:
        record: the engine's engine.json.
        server: what the server says about itself.
        speeds: of the engine alone, by batch size.
        loads: of the whole server.
        problems: what does not hold; empty when all does.
        graphs: one sentence on CUDA graphs, or None where they were not tried.
    """

    record: dict[str, Any]
    server: ServerInfo
    speeds: dict[int, speed.Speed]
    loads: list[server_checks.Load]
    problems: list[str]
    graphs: str | None


def main(
    model: Annotated[
        list[Path] | None, typer.Option(help="Embedder folder; may be given several times.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.")] = 10.0,
) -> None:
    """Check and time everything that needs a GPU; exits 1 when something does not hold."""
    gpus = gpu.find()
    if not gpus:
        sys.exit("gpu-check: there is no NVIDIA GPU here, so nothing was checked or measured")
    if not tensorrt_library.triton_has_tensorrt():
        _run_in_image()
    gallery = Gallery.load(ROOT / "demo")
    found = []
    for folder in model or [RELEASED]:
        console.print(f"examining {folder.name}")
        try:
            found.append(examine(folder, gallery, "tensorrt", seconds, cuda_graphs=True))
        except (BuildError, EmbeddingError, ValueError) as error:
            sys.exit(f"gpu-check: {folder.name}: {error}")
    console.print("running the tests")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "e2e or gpu"]

    tests_passed = local_server.run(tests, cwd=ROOT) == 0
    document = RESULTS / f"{slug(gpus[0].name)}.md"
    write_text(document, "\n".join(report(gpus[0], found, tests_passed)) + "\n")
    console.print(f"wrote {os.path.relpath(document)}")
    problems = [sentence for findings in found for sentence in findings.problems]
    for sentence in problems:
        console.print(f"[red]does not hold:[/] {sentence}", highlight=False)
    sys.exit(1 if problems or not tests_passed else 0)


def examine(
    model: Path,
    gallery: Gallery,
    target: str,
    seconds: float,
    cuda_graphs: bool,
    loads: Sequence[tuple[int, int]] = LOADS,
) -> Findings:
    """Build, check, serve and time one embedder.

    Args:
        model: embedder folder.
        gallery: labelled pictures.
        target: as in TARGET=.
        seconds: length of each measurement.
        cuda_graphs: build a second time with CUDA graphs, whose gate looks for stale answers.
        loads: pairs of requests in flight and pictures in each.

    Raises:
        BuildError: a gate does not hold.
        ServerUnavailable: Triton did not start with the engine; its log is in the message.
    """
    spec = EmbedderSpec.load(model)
    pixels = reference.load_gallery(gallery, spec.preprocessing)
    images = [picture.path.read_bytes() for picture in gallery.pictures]
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        cores = len(os.sched_getaffinity(0))
        assemble(static_models(), repository, cores)
        chosen = targets.choose(target, "auto", PlanOptions(), building.OUT)
        building.build(model, chosen, repository, gallery)
        engine = repository / DEFAULT.embedder / "1"
        record = json.loads((engine / "engine.json").read_text())
        problems = server_gate.problems(repository, pixels)
        console.print("timing the engine alone")
        run = chosen.runner(engine)
        speeds = {
            batch: speed.measure({"engine": run}, pixels, batch, 3, seconds / 10)["engine"]
            for batch in BATCHES
        }
        console.print("timing the server")
        with (
            server_gate.serving(repository) as started,
            EmbedderClient(started.grpc_url) as client,
        ):
            server = client.info()
            found = [
                server_checks.closed_load(started.grpc_url, images, concurrency, seconds, rows)
                for concurrency, rows in loads
            ]
        graphs = _graphs(model, gallery, target, repository) if cuda_graphs else None
    return Findings(record, server, speeds, found, problems, graphs)


def _graphs(model: Path, gallery: Gallery, target: str, repository: Path) -> str:
    chosen = targets.choose(target, "auto", PlanOptions(cuda_graphs=True), building.OUT)
    try:
        building.build(model, chosen, repository, gallery)
    except (BuildError, EmbeddingError) as error:
        return f"refused: {error}"
    return "passed the staleness gate"


def _run_in_image() -> None:
    """Start over inside NVIDIA's image, where Triton can serve a plan; never returns."""
    docker = shutil.which("docker")
    if docker is None:
        sys.exit(
            "gpu-check: this machine has a GPU, but neither Triton's TensorRT backend nor docker "
            "to fetch it with; see docs/gpu-runbook.md"
        )
    # Made here, or docker would make it and own it.
    RESULTS.mkdir(parents=True, exist_ok=True)
    os.environ["CHECK_USER"] = f"{os.getuid()}:{os.getgid()}"
    service = ["run", "--rm", "--build", "gpu-check", *IMAGE_COMMAND, *sys.argv[1:]]
    os.execv(docker, [docker, "compose", "--file", str(COMPOSE), *service])


def report(device: gpu.Gpu, found: Sequence[Findings], tests_passed: bool) -> Iterator[str]:
    """The document's lines, in Markdown."""
    server = found[0].server
    yield f"# {device.name}"
    yield ""
    yield (
        f"Compute capability {device.capability}, {device.memory / 2**30:.0f} GiB, driver for CUDA "
        f"{device.cuda}, Triton {server.triton}, {len(os.sched_getaffinity(0))} CPU cores, "
        f"{datetime.date.today().isoformat()}. Written by `make gpu-check`; the load came from the "
        "same machine, so decoding and clients share its cores."
    )
    yield ""
    yield f"End-to-end and GPU tests: {'passed' if tests_passed else '**failed**'}."
    for findings in found:
        yield from _section(findings)


def _section(findings: Findings) -> Iterator[str]:
    record, figures = findings.record, findings.record["gates"]["figures"]
    build = record["build"]
    yield f"\n## {record['model']} {record['version']}\n"
    yield (
        f"Engine `{record['engine']}`; {build.get('convolutions_fp16', 'no')} convolutions FP16; "
        f"built in {build.get('build_seconds', 'n/a')} s; profile {build.get('profile', 'n/a')}."
    )
    if not record["gates"]["meaningful"]:
        yield "\nRandom weights: the accuracy figures mean nothing."
    yield "\n| gate | measured | limit |\n|---|---|---|"
    limits = gates.TOLERANCES[record["precision"]]
    for cells in gate_table.rows(gates.Figures(**figures), limits):
        yield f"| {' | '.join(cells)} |".replace("|x|", "abs(x)")
    consistent = "; ".join(findings.problems) or "consistent in every batch, no stale answer"
    yield f"\nServed: {consistent}. CUDA graphs: {findings.graphs or 'not tried'}."
    yield "\n| engine alone, batch | images/s | ms a batch |\n|---|---|---|"
    for batch, found in findings.speeds.items():
        yield f"| {batch} | {found.images_per_second:.0f} | {found.milliseconds:.2f} |"
    yield (
        "\n| server: requests in flight x pictures | images/s | p50 ms | p99 ms | mean batch "
        "| failures |\n|---|---|---|---|---|---|"
    )
    for load in findings.loads:
        yield (
            f"| {load.concurrency} x {load.rows} | {load.images_per_second:.0f} "
            f"| {load.p50_ms:.1f} | {load.p99_ms:.1f} | {load.mean_batch:.1f} | {load.failures} |"
        )


def slug(name: str) -> str:
    """A file name for a GPU: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
