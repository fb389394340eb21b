"""`make engine`: compile an embedder, hold it against the gates, install it for Triton."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from unified_embedding.checkout import ROOT
from unified_embedding.engine import targets
from unified_embedding.engine.building import alone, build_choice, console
from unified_embedding.engine.choice import Choice
from unified_embedding.engine.tuning import tuning
from unified_embedding.errors import BuildError, EmbeddingError
from unified_embedding.gallery import Gallery
from unified_embedding.names import Names


def main(
    model: Annotated[
        Path | None, typer.Option(help="Folder with embedder.onnx and spec.json.")
    ] = None,
    target: Annotated[str | None, typer.Option(help=" | ".join(targets.TARGETS))] = None,
    precision: Annotated[str | None, typer.Option(help="auto | fp32 | bf16 | int8 | fp16")] = None,
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = (
        ROOT / "model_repository"
    ),
    prefix: Annotated[
        str,
        typer.Option(help="Prefix of the model names, for a further embedder in the repository."),
    ] = "",
    gallery: Annotated[Path | None, typer.Option(help="Pictures the gates run over.")] = None,
    frontend: Annotated[
        str | None, typer.Option(envvar="FRONTEND", help="tensorrt: onnx | torch-tensorrt")
    ] = None,
    optimum_batch: Annotated[
        int | None,
        typer.Option(
            envvar="OPTIMUM_BATCH",
            help="tensorrt, tensorrt-rtx: batch size that kernels are chosen for.",
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            envvar="OPTIMIZATION_LEVEL",
            help="tensorrt, tensorrt-rtx: 0 to 5; higher searches longer.",
        ),
    ] = None,
    version_compatible: Annotated[
        bool | None,
        typer.Option(
            envvar="VERSION_COMPATIBLE", help="tensorrt: the plan also loads in later versions."
        ),
    ] = None,
    compute_capabilities: Annotated[
        str | None,
        typer.Option(
            envvar="COMPUTE_CAPABILITIES",
            help="tensorrt-rtx: compute capabilities, e.g. '8.6 8.9'.",
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option(
            envvar="CUDA_GRAPHS", help="tensorrt: use CUDA graphs; fails if an answer is stale."
        ),
    ] = None,
    tuned: Annotated[
        Path, typer.Option(envvar="TUNING", help="What `make tune` found.")
    ] = tuning.FILE,
) -> None:
    """Compile an embedder, check it on real pictures and install it for Triton.

    What is not given stays as it is installed; where nothing is, it is the released embedder in
    the best engine for this machine.
    """
    logging.basicConfig(format="%(name)s: %(message)s")
    # The parser's errors come back with their nodes named; its log would say them twice.
    logging.getLogger("tensorrt.parser").setLevel(logging.CRITICAL)
    capabilities = None if compute_capabilities is None else tuple(compute_capabilities.split())
    try:
        names = Names(prefix)
        installed = Choice.installed(repository / names.embedder)
        choice = (installed or Choice()).with_(
            model,
            gallery,
            target,
            precision,
            frontend=frontend,
            optimum_batch=optimum_batch,
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            compute_capabilities=capabilities,
            cuda_graphs=cuda_graphs,
        )
        if choice == installed != Choice():
            console.print(f"keeping what is installed: {choice}", highlight=False, soft_wrap=True)
        with alone():
            build_choice(choice, repository, Gallery.load(choice.gallery), tuned, names=names)
    except (BuildError, EmbeddingError, ValueError) as error:
        console.print(f"[bold red]engine not installed:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
