"""`make engine`: compile an embedder, hold it against the gates, install it for Triton."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from unified_embedding.checkout import ROOT
from unified_embedding.engine import targets
from unified_embedding.engine.build_error import BuildError
from unified_embedding.engine.building import OUT, alone, build, console
from unified_embedding.engine.tensorrt import plan_options
from unified_embedding.engine.tuning import tuning
from unified_embedding.errors import EmbeddingError
from unified_embedding.gallery import Gallery


def main(
    model: Annotated[Path, typer.Option(help="Folder with embedder.onnx and spec.json.")],
    target: Annotated[str, typer.Option(help=" | ".join(targets.TARGETS))] = "auto",
    precision: Annotated[str, typer.Option(help="auto | fp32 | bf16 | int8 | fp16")] = "auto",
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = (
        ROOT / "model_repository"
    ),
    gallery: Annotated[Path, typer.Option(help="Pictures the gates run over.")] = ROOT / "demo",
    frontend: Annotated[
        str, typer.Option(envvar="FRONTEND", help="tensorrt: onnx | torch-tensorrt")
    ] = "onnx",
    optimum_batch: Annotated[
        int,
        typer.Option(
            envvar="OPTIMUM_BATCH",
            help="tensorrt, tensorrt-rtx: batch size that kernels are chosen for.",
        ),
    ] = plan_options.DEFAULT_OPTIMUM_BATCH,
    optimization_level: Annotated[
        int,
        typer.Option(
            envvar="OPTIMIZATION_LEVEL",
            help="tensorrt, tensorrt-rtx: 0 to 5; higher searches longer.",
        ),
    ] = plan_options.DEFAULT_OPTIMIZATION_LEVEL,
    version_compatible: Annotated[
        bool,
        typer.Option(
            envvar="VERSION_COMPATIBLE", help="tensorrt: the plan also loads in later versions."
        ),
    ] = False,
    compute_capabilities: Annotated[
        str,
        typer.Option(
            envvar="COMPUTE_CAPABILITIES",
            help="tensorrt-rtx: compute capabilities, e.g. '8.6 8.9'.",
        ),
    ] = "",
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            envvar="CUDA_GRAPHS", help="tensorrt: use CUDA graphs; fails if an answer is stale."
        ),
    ] = False,
    tuned: Annotated[
        Path, typer.Option(envvar="TUNING", help="What `make tune` found.")
    ] = tuning.FILE,
) -> None:
    """Compile MODEL for TARGET, check it on real pictures and install it for Triton."""
    logging.basicConfig(format="%(name)s: %(message)s")
    # The parser's errors come back with their nodes named; its log would say them twice.
    logging.getLogger("tensorrt.parser").setLevel(logging.CRITICAL)
    try:
        options = plan_options.PlanOptions(
            frontend=frontend,
            optimum_batch=optimum_batch,
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            compute_capabilities=tuple(compute_capabilities.split()),
            cuda_graphs=cuda_graphs,
        )
        with alone():
            chosen = targets.choose(target, precision, options, OUT)
            build(model, chosen, repository, Gallery.load(gallery), tuned)
    except (BuildError, EmbeddingError, ValueError) as error:
        console.print(f"[bold red]engine not installed:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)


def program() -> None:
    """Parse the command line and run."""
    typer.run(main)


if __name__ == "__main__":
    program()
