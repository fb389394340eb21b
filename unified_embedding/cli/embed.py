"""Embed picture files through the server: folders and globs in, Parquet, NPZ or JSONL out.

    python clients/embed.py photos/ 'more/*.webp' --out out/e.parquet

One row per picture: id (its path), embedding, code, version, engine; corpus/vector_files.py has
the columns' types. A picture that cannot be embedded is reported and skipped. An interrupted run
continues where it stopped when the same command is given again; what it has stands in the folder
OUT.parts until then.

Exit code: 0, every picture has its row; 1, some pictures were skipped; 2, nothing was written
(what was answered is kept for the next run); 130, interrupted (the same).
"""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from unified_embedding.cli.options import Url, connecting
from unified_embedding.client import DEFAULT_URL, OUTPUTS, Connection, EmbedderClient
from unified_embedding.corpus.one_file import begin, finish, skipped
from unified_embedding.corpus.running import console, ended, fill
from unified_embedding.corpus.sources import PassedOver, find
from unified_embedding.corpus.vector_files import FORMATS
from unified_embedding.corpus.worker import Load
from unified_embedding.errors import RunError
from unified_embedding.image import Limits, parse_crops

NAME: Final = "embed"


@connecting
def main(
    inputs: Annotated[list[str], typer.Argument(help="pictures, folders or glob patterns")],
    out: Annotated[Path, typer.Option(help=f"file to write: {', '.join(FORMATS)}")],
    url: Url = DEFAULT_URL,
    outputs: Annotated[str, typer.Option(help="columns, comma separated")] = ",".join(OUTPUTS),
    crop: Annotated[
        str, typer.Option(help="part of every picture: x0,y0,x1,y1 as fractions of it")
    ] = "",
    inflight: Annotated[int, typer.Option(min=1, help="requests in flight")] = 4,
    timeout: Annotated[float, typer.Option(min=0.001, help="seconds per request")] = 60.0,
    restart: Annotated[
        bool, typer.Option("--restart", help="drop an interrupted run of the same output")
    ] = False,
    *,
    connection: Connection,
) -> None:
    """Embed pictures and write one row for each."""

    def work() -> int:
        columns = selected(outputs)
        if out.suffix not in FORMATS:
            raise RunError(f"--out {out} ends with none of {', '.join(FORMATS)}")
        box = str(parse_crops(crop, 1)[0]) if crop else ""
        failed = run(inputs, out, url, columns, box, inflight, timeout, restart, connection)
        return 1 if failed else 0

    sys.exit(ended(NAME, work))


def selected(outputs: str) -> tuple[str, ...]:
    """The columns that --outputs names. Raises RunError."""
    names = {name.strip() for name in outputs.split(",")}
    if names - set(OUTPUTS):
        raise RunError(f"--outputs {outputs} is not a selection of {','.join(OUTPUTS)}")
    return tuple(name for name in OUTPUTS if name in names)


def run(
    inputs: list[str],
    out: Path,
    url: str,
    outputs: tuple[str, ...],
    crop: str,
    inflight: int,
    timeout: float,
    restart: bool,
    connection: Connection,
) -> int:
    """Embed pictures, write `out`, and return how many pictures were skipped."""
    passed = PassedOver()
    items = list(find(inputs, passed=passed, files_only=True))
    with EmbedderClient(url, timeout=timeout, **connection.options()) as client:
        server = client.info()
    corpus, engine = begin(out, server, outputs, crop, items, restart)
    if engine != server.engine:
        console.print(
            f"warning: the interrupted run used engine {engine}, the server now runs "
            f"{server.engine}: rows of both may be compared, but a few bits differ",
            style="yellow",
        )
    load = Load(
        urls=(url,),
        batch=server.max_batch_size,
        inflight=inflight,
        rate=0,
        timeout=timeout,
        patience=timeout,
        max_bytes=Limits.from_environment().max_bytes,
        connection=connection,
    )
    done = fill(NAME, corpus, load)
    for name, reason in skipped(corpus, done.entries):
        console.print(f"skipped {name}: {reason}", style="yellow")
    for sentence in passed.sentences():
        console.print(f"passed over: {sentence}", style="yellow")
    finish(out, corpus, done.entries)
    bad = sum(entry.bad for entry in done.entries)
    if bad == len(items):
        raise RunError(f"none of {len(items)} files could be embedded; {out} was not written")
    console.print(
        f"{out}: {len(items) - bad:,} rows, embedder version {server.version}; "
        f"{done.images:,} pictures in {done.seconds:.1f} s ({done.images / done.seconds:.0f}/s), "
        f"{len(items) - done.images:,} from an interrupted run, {bad:,} skipped"
    )
    return bad
