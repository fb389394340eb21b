"""Compile an embedder, hold it against the gates, install it whole or not at all."""

import datetime
import fcntl
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from unified_embedding import onnx_file
from unified_embedding.checkout import WORK
from unified_embedding.engine import recipe, targets, triton_config
from unified_embedding.engine.choice import Choice
from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.gates import consistency, gate_table, gates, reference
from unified_embedding.engine.tuning import tuning
from unified_embedding.errors import BuildError, GateError
from unified_embedding.gallery import Gallery
from unified_embedding.measure.files import write_json
from unified_embedding.measure.processor import cpu_name
from unified_embedding.names import DEFAULT, Names
from unified_embedding.serving import model_config
from unified_embedding.serving.repository import RECORD, file_hashes, fit
from unified_embedding.spec import MAX_BATCH_SIZE, SPEC_FILE, EmbedderSpec, digest

OUT: Final = WORK / "build" / "out"

console = Console()


def build_choice(
    choice: Choice,
    repository: Path,
    gallery: Gallery,
    tuned: Path = tuning.FILE,
    *,
    names: Names = DEFAULT,
    kept: bool = True,
) -> None:
    """Build and install what `choice` comes to: fp32 where "auto" is int8 and fails its gates.

    Args:
        choice: model, target, precision and options; its pictures are `gallery`.
        repository: where it is installed.
        gallery: pictures that the gates run over.
        tuned: what `make tune` found.
        names: of the models.
        kept: the next `make engine` goes on from `choice`.

    Raises:
        BuildError, SpecError, ValueError: as `build` and `targets.choose` do.
    """
    target = chosen(choice, repository / names.embedder, gallery, tuned)

    def built(target: targets.Target, refused: str | None = None) -> None:
        record = choice if kept else None
        build(
            choice.model,
            target,
            repository,
            gallery,
            tuned,
            names=names,
            choice=record,
            refused=refused,
        )

    try:
        built(target)
    except GateError:
        if not _may_fall_back(choice, target):
            raise
        console.print("PRECISION=auto: int8 does not hold its gates; fp32 instead")
        built(_fp32(choice, target), refused=_recipe(choice, target, gallery, tuned))


def chosen(choice: Choice, place: Path, gallery: Gallery, tuned: Path) -> targets.Target:
    """The target that `choice` comes to; fp32 where "auto" is the int8 that was refused in `place`.

    Raises:
        BuildError, SpecError, ValueError: as `targets.choose` does.
    """
    target = targets.choose(choice.target, choice.precision, choice.options, OUT, choice.model)
    refused = _refused(place) if _may_fall_back(choice, target) else None
    if refused is not None and _recipe(choice, target, gallery, tuned) == refused:
        return _fp32(choice, target)
    return target


def _may_fall_back(choice: Choice, target: targets.Target) -> bool:
    return (choice.precision, target.precision) == ("auto", "int8")


def _fp32(choice: Choice, target: targets.Target) -> targets.Target:
    return targets.choose(target.name, "fp32", choice.options, OUT)


def _recipe(choice: Choice, target: targets.Target, gallery: Gallery, tuned: Path) -> str:
    spec = EmbedderSpec.load(choice.model)
    return recipe_digest(spec, target, gallery, tuned_config(spec, target, tuned))


def _refused(place: Path) -> str | None:
    try:
        found: str | None = json.loads((place / "1" / RECORD).read_text())["refused"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def build(
    model: Path,
    target: targets.Target,
    repository: Path,
    gallery: Gallery,
    tuned: Path = tuning.FILE,
    *,
    names: Names = DEFAULT,
    choice: Choice | None = None,
    refused: str | None = None,
) -> None:
    """Build and install unless the same engine is already there.

    What Triton cannot serve is not installed: it goes to build/out/<name of the embedder>/.

    Args:
        model: embedder folder.
        target: how it is compiled.
        repository: where it is installed.
        gallery: pictures that the gates run over.
        tuned: what `make tune` found.
        names: of the models; with a prefix, those around the embedder are laid out too.
        choice: what was asked for, to be kept beside the engine.
        refused: recipe of an int8 engine that failed its gates, to be kept too; by default the
            one that was kept before.

    Raises:
        BuildError: a gate does not hold, or there is no repository; what was installed before
            stays.
    """
    _, spec = onnx_file.load(model)
    served = isinstance(target, targets.ServedTarget)
    if served and not repository.is_dir():
        raise BuildError(f"--repository {repository}: no such folder; give a model repository")
    config = tuned_config(spec, target, tuned)
    wanted = recipe_digest(spec, target, gallery, config)
    place = repository / names.embedder if served else OUT / spec.name
    if served and is_current(place, wanted):
        keep(place / "1" / RECORD, choice, refused)
        what = f"engine {engine_id(spec, target, gallery)} of {spec.name} {spec.version}"
        console.print(f"{what} is up to date")
    else:
        # On the place's file system, so that installing is a rename, but not where Triton looks.
        beside = repository.resolve().parent if served else OUT
        with tempfile.TemporaryDirectory(
            prefix=".engine-", dir=beside, ignore_cleanup_errors=True
        ) as staging:
            staged = Path(staging) / DEFAULT.embedder
            folder = staged / "1" if served else staged
            record = make(model, spec, target, gallery, config, folder)
            record |= {"recipe": wanted, "choice": choice.record() if choice else None}
            record |= {"refused": refused or _refused(place), "files": file_hashes(staged)}
            (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            install(staged, place)
        console.print(
            f"{'installed' if served else 'wrote'} engine [bold]{record['engine']}[/] in "
            f"{os.path.relpath(place)}"
        )
    if served:
        fit(repository, spec.dim, names)


def make(
    model: Path,
    spec: EmbedderSpec,
    target: targets.Target,
    gallery: Gallery,
    config: EmbedderConfig | None,
    folder: Path,
) -> dict[str, Any]:
    """Compile into `folder`, write Triton's configuration above it, hold all against the gates.

    Returns:
        What engine.json says about it.

    Raises:
        BuildError: a gate does not hold.
    """
    folder.mkdir(parents=True)
    console.print(f"compiling {spec.name} {spec.version} for {target.name}, {target.precision}")
    pixels = reference.load_gallery(gallery, spec.preprocessing)
    details = target.compile(model, folder, pixels)
    figures, passed = run_gates(model, spec, target, folder, gallery, pixels)
    shutil.copyfile(model / SPEC_FILE, folder / SPEC_FILE)
    engine = engine_id(spec, target, gallery)
    if config is not None:
        rendered = triton_config.render(config, spec, engine)
        model_config.write(folder.parent, rendered, triton_config.COMMENT)
        if config.cuda_graphs:
            check_cuda_graphs(folder.parent.parent, pixels)
    if not passed:
        raise GateError("a gate failed; the engine installed before is kept")
    return {
        "engine": engine,
        "version": spec.version,
        "model": spec.name,
        "target": target.name,
        "precision": target.precision,
        "built": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(target),
        "build": details,
        "gates": {
            "gallery": gallery.digest(),
            "meaningful": not spec.random,
            "limits": vars(gates.TOLERANCES[target.precision]),
            "figures": figures.as_dict(),
        },
    }


def check_cuda_graphs(repository: Path, pixels: NDArray[np.uint8]) -> None:
    """Serve the staged engine and look for stale answers. Raises BuildError."""
    from unified_embedding.engine.gates import server_gate

    found = server_gate.problems(repository, pixels)
    if found:
        raise BuildError(f"CUDA_GRAPHS=1: {'; '.join(found)}; build without CUDA graphs")


def engine_id(spec: EmbedderSpec, target: targets.Target, gallery: Gallery) -> str:
    """Target, precision and a hash of what decides the engine's bits.

    The code is not part of it: a change of code that changes an engine's bits adds or changes an
    entry of the target's `inputs()`. Everything else is the recipe's (`recipe_digest`).

    Engines of one version and different id give embeddings that differ in rounding, and
    codes that differ in about one bit of a hundred (bf16 against fp32).
    """
    pictures = [gallery.digest()] if target.calibrated else []
    return f"{target.name}-{target.precision}-{digest([spec.version, target.inputs(), *pictures])}"


def tuned_config(spec: EmbedderSpec, target: targets.Target, tuned: Path) -> EmbedderConfig | None:
    """How Triton runs the engine on this machine; None for what Triton does not serve."""
    if not isinstance(target, targets.ServedTarget):
        return None
    return tuning.apply(target.config(), tuning.key(spec, target), tuned)


def recipe_digest(
    spec: EmbedderSpec,
    target: targets.Target,
    gallery: Gallery,
    config: EmbedderConfig | None,
) -> str:
    """A hash of everything a build depends on: unchanged means nothing to do.

    Unlike the engine's id, it changes with the code: a changed gate is run again over an engine
    whose bits, and so whose id, stay.
    """
    modules = [__name__, type(target).__module__]
    if config is not None and config.cuda_graphs:
        modules.append("unified_embedding.engine.gates.server_gate")
    settings = model_config.text(triton_config.render(config, spec, "")) if config else ""
    return digest(
        [
            engine_id(spec, target, gallery),
            spec.name,
            gallery.digest(),
            recipe.packages(),
            recipe.code(modules),
            settings,
        ]
    )


def is_current(installed: Path, wanted: str) -> bool:
    """True when `installed` holds, whole, what a build of recipe `wanted` would put there."""
    try:
        record = json.loads((installed / "1" / RECORD).read_text())
        return bool(record["recipe"] == wanted and record["files"] == file_hashes(installed))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def keep(file: Path, choice: Choice | None, refused: str | None) -> None:
    """Record what was asked for and refused in the engine.json of an engine that stays."""
    before = json.loads(file.read_text())
    record = dict(before)
    if choice is not None:
        record["choice"] = choice.record()
    if refused is not None:
        record["refused"] = refused
    if record != before:
        write_json(file, record)


def run_gates(
    model: Path,
    spec: EmbedderSpec,
    target: targets.Target,
    folder: Path,
    gallery: Gallery,
    pixels: NDArray[np.uint8],
) -> tuple[gates.Figures, bool]:
    """Embed the gallery with the engine and with the fp32 ONNX, compare and print.

    Returns:
        The figures, and True when the engine may be installed.
    """
    truth = reference.reference_embeddings(model, spec, pixels, OUT / "reference")
    run = target.runner(folder)
    rows = reference.embed(run, pixels, f"{target.name} {target.precision}")
    found = consistency.problems(run, pixels, MAX_BATCH_SIZE, target.bit_exact_across_batches)
    figures = gates.measure(truth, rows, gallery, repeatable=not found)
    for sentence in found:
        console.print(f"[red]inconsistent:[/] {sentence}", highlight=False)
    return figures, gate_table.report(console, figures, spec, target.precision)


def environment(target: targets.Target) -> dict[str, str]:
    """Versions and processor the engine was built with."""
    basics = {"python": platform.python_version(), "cpu": cpu_name()}
    return {**basics, **recipe.packages(), **target.inputs()}


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
def alone() -> Iterator[None]:
    """One build at a time: two would install over each other. Raises BuildError."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError("another `make engine` is running in this checkout") from None
        yield
