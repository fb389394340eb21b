"""`python -m unified_embedding.datasets`: prepare, check and import data."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unified_embedding.datasets import importers, prepare
from unified_embedding.datasets.manifest import read_manifest, summary
from unified_embedding.datasets.store import HOME_VARIABLE, data_home
from unified_embedding.errors import DataError

app = typer.Typer(help="Training data: the public substitutes, and your own manifests.")


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    train_shots: Annotated[int, typer.Option(min=0, help="camera shots per product")] = 6,
    train_scenes: Annotated[int, typer.Option(min=0, help="scenes of several products")] = 600,
    jobs: Annotated[int, typer.Option(min=1, help="processes that render")] = os.cpu_count() or 1,
) -> None:
    """Fetch and prepare the public data (without a command); run again to repair it."""
    if context.invoked_subcommand is not None:
        return
    home = data_home()
    home.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    console.print(f"data folder {home} (set {HOME_VARIABLE} to move it)", soft_wrap=True)
    wanted = prepare.plan(train_shots, train_scenes)
    try:
        report = prepare.prepare(home, wanted, jobs, console)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues from here")
        sys.exit(130)
    _tell(report)


@app.command()
def check(manifest: Path) -> None:
    """Check a manifest and every picture it names; say how many rows each task has."""
    _or_exit(lambda: typer.echo(summary(read_manifest(manifest))))


@app.command()
def import_stanford(root: Path) -> None:
    """Write ROOT/manifest.csv for an unpacked Stanford Online Products."""
    _import("sop", root)


@app.command()
def import_in_shop(root: Path) -> None:
    """Write ROOT/manifest.csv for an unpacked In-Shop Clothes Retrieval."""
    _import("in-shop", root)


@app.command()
def import_cub(root: Path) -> None:
    """Write ROOT/manifest.csv for an unpacked CUB-200-2011."""
    _import("cub", root)


@app.command()
def import_cars(root: Path) -> None:
    """Write ROOT/manifest.csv for an unpacked Cars196."""
    _import("cars", root)


def _import(name: str, root: Path) -> None:
    _or_exit(lambda: typer.echo(importers.import_manifest(name, root)))


def _tell(report: prepare.Report) -> None:
    for reason in report.missing:
        typer.echo(f"missing: {reason}", err=True)
    if report.manifest is None:
        typer.echo("nothing could be prepared", err=True)
        sys.exit(1)
    typer.echo(summary(read_manifest(report.manifest)))
    typer.echo(
        f"{report.downloaded} packages downloaded, {report.made} files made; "
        f"{report.manifest} holds {', '.join(report.tasks)}"
    )
    if report.missing:
        typer.echo(f"training works with data.tasks=[{','.join(report.tasks)}]", err=True)
        sys.exit(1)


def _or_exit(action: Callable[[], object]) -> None:
    try:
        action()
    except DataError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    app()
