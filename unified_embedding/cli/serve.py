"""Serve an embedder with Triton: an engine that passed its gates elsewhere, or passes them here.

    unified-embedding serve --engine model_repository/embedder
    unified-embedding serve --model embedder/ --gallery pictures/ -- --http-port=9000

Needs no checkout: the static models come with the package. Without either option it serves what
stands in the repository, as `tritonserver --model-repository=REPOSITORY` does.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from unified_embedding.checkout import IS_CHECKOUT, ROOT, WORK
from unified_embedding.cli.main import lacking
from unified_embedding.errors import BuildError, EmbeddingError, SetupError
from unified_embedding.gallery import MANIFEST, Gallery
from unified_embedding.serving.repository import (
    ENGINE,
    add_engine,
    assemble,
    fit,
    gated,
    static_models,
    use_cores,
)
from unified_embedding.serving.repository import expect as check_expected
from unified_embedding.serving.tritonserver import launch
from unified_embedding.spec import EmbedderSpec

SERVED = WORK / "out" / "served"


def main(
    engine: Annotated[
        Path | None,
        typer.Option(
            help="engine that passed its gates: the folder model_repository/embedder of the "
            "machine that built it"
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="embedder to compile here first: a folder with embedder.onnx, spec.json"),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(help="--model: folder of the pictures that the gates run over"),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(
            help="where the model repository is laid out",
            show_default=f"one for each engine, below {SERVED}",
        ),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            help='--engine: serve no other than this "VERSION ENGINE", or one that begins so: '
            '"c3050c6549f6 openvino-fp32"'
        ),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(
            help="--engine: threads of a CPU engine",
            show_default="as many as the machine that built it had",
        ),
    ] = None,
    preprocess_instances: Annotated[
        int | None,
        typer.Option(
            envvar="PREPROCESS_INSTANCES",
            help="--engine: processes that decode pictures",
            show_default="3; where a GPU computes, one for each core",
        ),
    ] = None,
    flags: Annotated[
        list[str] | None, typer.Argument(help="after --: flags for tritonserver")
    ] = None,
) -> None:
    """Lay out a model repository and run tritonserver on it; SIGTERM or Ctrl-C ends it."""
    try:
        if engine and model:
            raise SetupError("--engine serves one that is built, --model builds one: give either")
        if not engine and (expect or cores):
            raise SetupError("--expect and --cores go with --engine")
        if engine:
            if expect:
                check_expected(engine, expect)
            served = _with_engine(engine, repository, preprocess_instances)
            if cores is not None:
                use_cores(served, cores)
        elif model:
            served = _with_model(model, gallery, repository)
        else:
            served = repository or ROOT / "model_repository"
            if not (served / ENGINE).is_dir():
                where = (
                    f"{served} holds no engine" if repository or IS_CHECKOUT else "which engine?"
                )
                raise SetupError(
                    f"{where}; give --engine FOLDER, or --model FOLDER --gallery PICTURES"
                )
    except (BuildError, EmbeddingError, ValueError, OSError) as error:
        sys.exit(f"serve: {error}")
    launch([f"--model-repository={served}", *(flags or ())])


def _with_engine(engine: Path, repository: Path | None, instances: int | None) -> Path:
    record = gated(engine)
    into = repository or SERVED / f"{record['version']}-{record['engine']}"
    if instances is None and record["target"] != "openvino":
        # A GPU embeds faster than as many processes decode as are right for a laptop.
        instances = len(os.sched_getaffinity(0))
    assemble(static_models(), into, instances)
    add_engine(engine, into)
    fit(into, EmbedderSpec.load(into / ENGINE / "1").dim)
    return into


def _with_model(model: Path, gallery: Path | None, repository: Path | None) -> Path:
    try:
        from unified_embedding.engine import building
        from unified_embedding.engine.choice import Choice
    except ImportError as error:
        lacking("serve --model", "build", error)
    if gallery is None:
        raise SetupError("--model needs --gallery: a folder of pictures that the gates run over")
    labelled = (gallery / MANIFEST).is_file()
    pictures = Gallery.load(gallery) if labelled else Gallery.unlabelled(gallery)
    into = repository or SERVED / EmbedderSpec.load(model).version
    assemble(static_models(), into)
    with building.alone():
        # Not kept: `make engine` reads no pictures without a manifest.
        building.build_choice(Choice(model, gallery), into, pictures, kept=False)
    return into
