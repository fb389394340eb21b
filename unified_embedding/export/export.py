"""Export an embedder: `python -m unified_embedding.export --trunk NAME --out DIR`.

Writes the folder that `make engine` takes: embedder.onnx, spec.json, README.md, LICENSE.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from unified_embedding import onnx_file
from unified_embedding.datasets import made_up
from unified_embedding.errors import EmbeddingError, SpecError
from unified_embedding.export import card, pictures
from unified_embedding.export.folder import whole_folder
from unified_embedding.export.graph import MAX_DIFFERENCE, check_equal, largest_difference, to_onnx
from unified_embedding.image import Preprocessing
from unified_embedding.spec import RANDOM_WEIGHTS, EmbedderSpec
from unified_embedding.training import checkpoint as checkpoints
from unified_embedding.training.checkpoint import load_embedder
from unified_embedding.training.model import FixedMap, UnifiedEmbedder, calibrate_batch_norm
from unified_embedding.training.weights import LITE0_TRUNK, load_trunk, trunk_weights

Resize = Literal["letterbox", "center_crop"]
Interpolation = Literal["bilinear", "bicubic"]

CALIBRATION_PICTURES: Final = 128
CHECKED_PICTURES: Final = 8


@dataclass(frozen=True)
class Exportable:
    """A model ready to be written.

    Attributes:
        model: the network, weights loaded.
        trunk: its timm name.
        weights: what spec.json states about their source.
        license: SPDX expression of the weights.
        training: the model card's section on training, or None for a zero-shot trunk.
        compatible_with: versions whose stored codes its queries may search; see `declared`.
    """

    model: UnifiedEmbedder
    trunk: str
    weights: str
    license: str
    training: str | None = None
    compatible_with: tuple[str, ...] = ()


def zero_shot(
    trunk: str,
    weights: str | None = None,
    license: str | None = None,
    size: int = 224,
    seed: int = 0,
) -> Exportable:
    """A timm trunk with the weights that `trunk_weights` finds, ready to be exported.

    Random weights are drawn from `seed`; they still need `calibrate_batch_norm`.

    Raises:
        SpecError: see `trunk_weights` and `UnifiedEmbedder`.
    """
    found = trunk_weights(trunk, weights, license)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UnifiedEmbedder(trunk, size, found.mean, found.std)
    if found.state is not None:
        load_trunk(model.trunk, found.state, found.source)
    return Exportable(model.eval(), trunk, found.source, found.license)


def from_checkpoint(path: Path, license: str | None = None) -> tuple[Exportable, Preprocessing]:
    """The embedder of a training run's best.pt or last.pt, and its preprocessing.

    Raises:
        TrainingError: the file is missing, damaged or holds no embedder.
        SpecError: it was trained without LayerNorm, an ablation that has no codes.
    """
    model, recipe, summary = load_embedder(path)
    if not recipe.layer_norm:
        raise SpecError(f"{path} was trained without LayerNorm (an ablation); it is not served")
    weights = f"trained on {', '.join(summary['tasks'])}, from: {recipe.weights}"
    text = card.trained(summary, recipe.weights)
    license = license or recipe.license
    return Exportable(model, recipe.trunk, weights, license, text), recipe.preprocessing


def declared(path: Path, folder: Path) -> str:
    """The version of the released embedder in `folder`, whose codes the run's queries may search.

    Only what the run was trained against can be declared: that released embedder, or the one that
    was exported from the run's old checkpoint, which then must still be there to be compared.

    Raises:
        TrainingError: the checkpoint, or the old one, cannot be read.
        SpecError: the folder holds no embedder, or another one.
    """
    against = checkpoints.read(path)["summary"].get("compatible_with")
    if against is None:
        raise SpecError(
            f"{path} was not trained to be compatible with another embedder (compatible_with in "
            "its configuration), so nothing can be declared"
        )
    graph, spec = onnx_file.load(folder)
    if against["version"] == spec.version:
        return spec.version
    if against["version"] is None:
        old = Path(against["old"])
        model, recipe, _ = load_embedder(old)
        same = checkpoints.embedder_id(checkpoints.read(old)) == against["id"]
        if same and recipe.preprocessing == spec.preprocessing and model.dim == spec.dim:
            pixels = made_up.pixels(CHECKED_PICTURES, spec.preprocessing.size)
            if largest_difference(model, graph, pixels) <= MAX_DIFFERENCE:
                return spec.version
    raise SpecError(
        f"{path} was trained to be compatible with {against['old']}, and {folder} (version "
        f"{spec.version}) is another embedder; name the folder of that one"
    )


def write(
    exportable: Exportable,
    out: Path,
    name: str,
    preprocessing: Preprocessing,
    pixels: NDArray[np.uint8],
    pixels_are: str,
    license_file: Path | None = None,
    notes: str = "",
) -> tuple[EmbedderSpec, float]:
    """Trace, check against onnxruntime and write the folder `out`, whole or not at all.

    Args:
        exportable: what to write.
        out: folder; an earlier embedder there is replaced.
        name: the spec's name.
        preprocessing: its size must be the model's.
        pixels: uint8 [N, S, S, 3] on which torch and onnxruntime must agree.
        pixels_are: where the pixels come from, for the model card.
        license_file: text of the weights' licence, unless that is Apache-2.0.
        notes: further sections of the model card, Markdown.

    Returns:
        The spec, and the largest difference between torch and onnxruntime.

    Raises:
        SpecError: the two differ, or the folder holds something else.
    """
    license_text = card.license_text(exportable.license, license_file)
    with whole_folder(out) as folder:
        graph = to_onnx(exportable.model)
        spec = EmbedderSpec(
            name=name,
            trunk=exportable.trunk,
            dim=exportable.model.dim,
            weights=exportable.weights,
            graph_sha256=onnx_file.graph_sha256(graph),
            preprocessing=preprocessing,
            license=exportable.license,
            compatible_with=exportable.compatible_with,
        )
        difference = check_equal(exportable.model, graph, pixels)
        onnx_file.save(graph, spec, folder)
        training = exportable.training or card.zero_shot_training(spec, pixels_are)
        mapped = isinstance(exportable.model.fixed_map, FixedMap)
        text = card.model_card(spec, training, difference, mapped, notes)
        (folder / "README.md").write_text(text)
        (folder / "LICENSE").write_text(license_text)
        onnx_file.load(folder)
    return spec, difference


def example_pixels(folder: Path, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], str]:
    """Pixels to calibrate and check on, and a phrase that says what they are.

    At most `CALIBRATION_PICTURES`; made-up pictures when `folder` holds none.
    """
    paths = pictures.spread(pictures.find(folder), CALIBRATION_PICTURES)
    if len(paths) >= 2:
        return pictures.read(paths, preprocessing), f"{len(paths)} pictures of {folder.name}/"
    return (
        made_up.pixels(CALIBRATION_PICTURES, preprocessing.size),
        f"{CALIBRATION_PICTURES} made-up pictures ({folder.name}/ held none)",
    )


def main(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder to write; an embedder there is replaced.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="best.pt of a training run; it states all but the name.")
    ] = None,
    trunk: Annotated[str, typer.Option(help="timm name of the trunk.")] = LITE0_TRUNK,
    weights: Annotated[
        str | None,
        typer.Option(help="lite0, random or a state dict; lite0 for its own trunk by default."),
    ] = None,
    size: Annotated[int, typer.Option(min=32, help="Side of the square input, pixels.")] = 224,
    resize: Annotated[Resize, typer.Option(help="How a picture is made square.")] = "letterbox",
    interpolation: Annotated[Interpolation, typer.Option(help="Resampling filter.")] = "bilinear",
    name: Annotated[
        str | None, typer.Option(help="Name in the spec; by default the folder's.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="SPDX expression of the weights.")] = None,
    license_file: Annotated[Path | None, typer.Option(help="Text of that licence.")] = None,
    calibrate: Annotated[
        Path, typer.Option(help="Pictures for BatchNorm (random weights) and for the check.")
    ] = Path("demo"),
    notes: Annotated[
        Path | None, typer.Option(help="Markdown on data and figures, for the model card.")
    ] = None,
    compatible_with: Annotated[
        Path | None,
        typer.Option(
            help="Released embedder that the run was trained to be compatible with: declare that "
            "queries may search its index. Measure first whether they find what they should."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
) -> None:
    """Write embedder.onnx, spec.json, model card and licence, whole or not at all."""
    console = Console(stderr=True)
    try:
        if checkpoint is not None:
            _refuse_beside_checkpoint(context)
            exportable, preprocessing = from_checkpoint(checkpoint, license)
            if compatible_with is not None:
                version = declared(checkpoint, compatible_with)
                exportable = replace(exportable, compatible_with=(version,))
        elif compatible_with is not None:
            raise SpecError(
                "--compatible-with needs --checkpoint, of a run that was trained for it"
            )
        else:
            preprocessing = Preprocessing(size, resize, interpolation)
            with console.status(f"building {trunk}"):
                exportable = zero_shot(trunk, weights, license, size, seed)
        with console.status("reading pictures"):
            pixels, pixels_are = example_pixels(calibrate, preprocessing)
        if exportable.weights == RANDOM_WEIGHTS:
            console.print(f"random weights: calibrating BatchNorm on {pixels_are}")
            with console.status("calibrating"):
                calibrate_batch_norm(exportable.model, torch.from_numpy(pixels))
        with console.status("tracing, and comparing with onnxruntime"):
            spec, difference = write(
                exportable,
                out,
                name or out.resolve().name,
                preprocessing,
                pixels[:CHECKED_PICTURES],
                pixels_are,
                license_file,
                _notes(notes),
            )
    except EmbeddingError as error:
        console.print(f"[red]export failed:[/red] {error}", highlight=False)
        raise typer.Exit(1) from None
    console.print(
        f"{out}: {spec.trunk}, D = {spec.dim}, {spec.code_bytes}-byte codes, weights "
        f"{spec.weights}, version {spec.version}; torch and onnxruntime differ by at most "
        f"{difference:.1g} on {CHECKED_PICTURES} of {pixels_are}",
        highlight=False,
        soft_wrap=True,
    )


def _notes(path: Path | None) -> str:
    try:
        return path.read_text() if path is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--notes {path} cannot be read ({error})") from error


def _refuse_beside_checkpoint(context: typer.Context) -> None:
    """A checkpoint states its own trunk and preprocessing; another answer must not be ignored."""
    for name in ("trunk", "weights", "size", "resize", "interpolation", "seed"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise SpecError(f"--{name} does not go with --checkpoint, which states it")
