"""`make engine`: compile an embedder, hold it against the gates, install it whole or not at all."""

import datetime
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Final, Protocol

import gates
import numpy as np
import reference
import triton_config
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from unified_embedding import onnx_file
from unified_embedding.errors import EmbeddingError
from unified_embedding.gallery import Gallery
from unified_embedding.spec import SPEC_FILE, EmbedderSpec, digest

ROOT: Final = Path(__file__).resolve().parent.parent
OUT: Final = ROOT / "build" / "out"
TARGETS: Final = ("auto", "openvino", "tensorrt", "tensorrt-rtx")

console = Console()


class Target(Protocol):
    """One way to compile and serve an embedder."""

    name: str
    precision: str

    def inputs(self) -> dict[str, str]:
        """What besides the embedder decides the engine's bits."""

    def compile(self, model: Path, folder: Path) -> None:
        """Write the engine's files into `folder` (embedder/1)."""

    def config(self) -> triton_config.EmbedderConfig:
        """How Triton runs the engine."""

    def runner(self, folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """The engine in `folder` as a function pixels [N, S, S, 3] -> embedding [N, D]."""


class BuildError(Exception):
    """The engine was not built or not installed; the message says why."""


def main(
    model: Annotated[Path, typer.Option(help="Folder with embedder.onnx and spec.json.")],
    target: Annotated[str, typer.Option(help=" | ".join(TARGETS))] = "auto",
    precision: Annotated[str, typer.Option(help="auto | fp32 | bf16")] = "auto",
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = (
        ROOT / "model_repository"
    ),
    gallery: Annotated[Path, typer.Option(help="Pictures the gates run over.")] = ROOT / "demo",
) -> None:
    """Compile MODEL for TARGET, check it on real pictures and install it for Triton."""
    try:
        with _lock():
            build(model, choose_target(target, precision), repository, Gallery.load(gallery))
    except (BuildError, EmbeddingError, ValueError) as error:
        console.print(f"[bold red]engine not installed:[/] {error}", highlight=False)
        sys.exit(1)


def choose_target(name: str, precision: str) -> Target:
    """The target that TARGET and PRECISION name. Raises BuildError for what cannot be built."""
    if name not in TARGETS:
        raise BuildError(f"TARGET={name} is unknown; use one of {', '.join(TARGETS)}")
    if name.startswith("tensorrt"):
        raise BuildError(
            f"TARGET={name} is not available yet; TARGET=openvino builds the engine for this CPU"
        )
    from openvino_target import OpenVinoTarget

    return OpenVinoTarget(precision)


def build(model: Path, target: Target, repository: Path, gallery: Gallery) -> None:
    """Build and install unless the same engine is already there.

    Raises:
        BuildError: a gate does not hold; what was installed before stays.
    """
    _, spec = onnx_file.load(model)
    engine = engine_id(spec, target)
    recipe = recipe_digest(spec, target, gallery)
    installed = repository / "embedder"
    if is_current(installed, recipe):
        console.print(f"engine {engine} of {spec.name} {spec.version} is up to date")
        return
    # Beside the repository, so that installing is a rename; not inside, where Triton would see it.
    staging = Path(tempfile.mkdtemp(prefix=".engine-", dir=repository.resolve().parent))
    try:
        folder = staging / "embedder" / "1"
        folder.mkdir(parents=True)
        console.print(f"compiling {spec.name} {spec.version} for {target.name}, {target.precision}")
        target.compile(model, folder)
        figures = run_gates(model, spec, target, folder, gallery)
        passed = report(figures, spec, target.precision)
        shutil.copyfile(model / SPEC_FILE, folder / SPEC_FILE)
        text = triton_config.render(target.config(), spec, engine)
        (staging / "embedder" / "config.pbtxt").write_text(text)
        record = {
            "engine": engine,
            "version": spec.version,
            "model": spec.name,
            "target": target.name,
            "precision": target.precision,
            "recipe": recipe,
            "built": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": environment(target),
            "gates": {
                "gallery": gallery.digest(),
                "meaningful": not spec.random,
                "limits": vars(gates.LIMITS[target.precision]),
                "figures": figures.as_dict(),
            },
            "files": file_hashes(staging / "embedder"),
        }
        (folder / "engine.json").write_text(json.dumps(record, indent=2) + "\n")
        if not passed:
            raise BuildError("a gate failed; the engine that stood there before stays")
        install(staging / "embedder", installed)
        console.print(f"installed engine [bold]{engine}[/] in {os.path.relpath(installed)}")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def engine_id(spec: EmbedderSpec, target: Target) -> str:
    """Target, precision and a hash of the engine's inputs.

    Engines of one version and different id give embeddings that differ in rounding, and
    codes that differ in about one bit of a hundred (bf16 against fp32).
    """
    return f"{target.name}-{target.precision}-{digest([spec.version, target.inputs()])}"


def recipe_digest(spec: EmbedderSpec, target: Target, gallery: Gallery) -> str:
    """A hash of everything a build depends on: unchanged means nothing to do."""
    sources = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(__file__).parent.glob("*.py"))
    }
    return digest([engine_id(spec, target), spec.name, gallery.digest(), sources])


def is_current(installed: Path, recipe: str) -> bool:
    """True when `installed` holds, whole, what `recipe` would build."""
    try:
        record = json.loads((installed / "1" / "engine.json").read_text())
        return bool(record["recipe"] == recipe and record["files"] == file_hashes(installed))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` except engine.json, by relative path."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "engine.json" and "__pycache__" not in path.parts
    )
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def run_gates(
    model: Path, spec: EmbedderSpec, target: Target, folder: Path, gallery: Gallery
) -> gates.Figures:
    """Embed the gallery with the engine and with the fp32 ONNX, and compare."""
    pixels = reference.load_gallery(gallery, spec.preprocessing)
    truth = reference.reference_embeddings(model, spec, gallery, pixels, OUT / "reference")
    run = target.runner(folder)
    rows = reference.embed(run, pixels, f"{target.name} {target.precision}")
    same = run(np.repeat(pixels[:1], 4, axis=0))
    repeatable = bool((same == same[0]).all() and (same[0] == rows[0]).all())
    return gates.measure(truth, rows, gallery, repeatable)


def report(figures: gates.Figures, spec: EmbedderSpec, precision: str) -> bool:
    """Print the figures beside their limits; True when the engine may be installed."""
    limits = gates.LIMITS[precision]
    table = Table(title=f"gates over {figures.images} pictures, against onnxruntime fp32")
    for column in ("figure", "measured", "limit"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for row in _rows(figures, limits):
        table.add_row(*row)
    console.print(table)
    found = gates.failures(figures, limits)
    if spec.random:
        console.print("random weights: these figures mean nothing and nothing is gated on them")
        return figures.finite and figures.repeatable
    for sentence in found:
        console.print(f"[red]gate failed:[/] {sentence}", highlight=False)
    return not found


def _rows(figures: gates.Figures, limits: gates.Limits) -> Iterator[tuple[str, str, str]]:
    def shown(limit: float | None, sign: str, percent: bool = False) -> str:
        if limit is None:
            return "reported"
        return f"{sign} {limit:.2%}" if percent else f"{sign} {limit:g}"

    yield "cosine, worst", f"{figures.cosine_worst:.6f}", shown(limits.cosine_worst, ">=")
    yield "cosine, mean", f"{figures.cosine_mean:.6f}", shown(limits.cosine_mean, ">=")
    yield "bits flipped, mean", f"{figures.flips_mean:.3%}", shown(limits.flips_mean, "<=", True)
    yield "bits flipped, worst", f"{figures.flips_worst:.3%}", shown(limits.flips_worst, "<=", True)
    yield "largest |x| flipped", f"{figures.flip_at:.4f}", shown(limits.flip_at, "<=")
    yield "float top-10 overlap", f"{figures.neighbours:.4f}", shown(limits.neighbours, ">=")
    unit = "query" if limits.in_queries else "of the queries"
    for name, value in figures.recall.items():
        limit = "reported" if name == "asymmetric" else f"loss <= {limits.recall_loss:g} {unit}"
        known = figures.recall_reference[name]
        yield f"R@1 {name} (fp32 {known:.3f})", f"{value:.3f}", limit


def environment(target: Target) -> dict[str, str]:
    """Versions and processor the engine was built with."""
    packages = {name: package_version(name) for name in ("numpy", "onnx", "onnxruntime", "pillow")}
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {"python": platform.python_version(), "cpu": cpu, **packages, **target.inputs()}


def install(staged: Path, installed: Path) -> None:
    """Put `staged` in the place of `installed`; the old one returns if that fails."""
    old = staged.parent / "replaced"
    if installed.exists():
        installed.rename(old)
    try:
        staged.rename(installed)
    except OSError:
        if old.exists():
            old.rename(installed)
        raise


@contextmanager
def _lock() -> Iterator[None]:
    """One build at a time: two would install over each other."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError("another `make engine` is running in this checkout") from None
        yield


if __name__ == "__main__":
    typer.run(main)
