"""Lay out the static models for a production server."""

import os
from pathlib import Path
from typing import Annotated

import typer

from unified_embedding.serving.repository import STATIC_MODELS, assemble, static_models


def main(
    into: Annotated[Path, typer.Option(help="Model repository to fill.")],
    preprocess_instances: Annotated[
        int | None,
        typer.Option(envvar="PREPROCESS_INSTANCES", help="Default: one for each core."),
    ] = None,
) -> None:
    """Lay out the static models for a production server."""
    count = preprocess_instances or len(os.sched_getaffinity(0))
    assemble(static_models(), into, count)
    print(f"{into}: {', '.join(STATIC_MODELS)}; preprocess with {count} instances")


def program() -> None:
    """Parse the command line and run."""
    typer.run(main)


if __name__ == "__main__":
    program()
