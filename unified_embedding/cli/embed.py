"""Embed picture files through the server: folders and globs in, Parquet, NPZ or JSONL out.

    python clients/embed.py photos/ 'more/*.webp' --out out/e.parquet

One row per picture: id (its path), embedding, code, version, engine; _vector_files.py has the
columns' types. A picture that cannot be embedded is reported and skipped. An interrupted run
continues where it stopped when the same command is given again.

Exit code: 0, every picture has its row; 1, some pictures were skipped; 2, nothing was written
(finished parts are kept for the next run); 130, interrupted (the same).
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from unified_embedding import Box
from unified_embedding.cli.options import Url, connecting
from unified_embedding.client import DEFAULT_URL, OUTPUTS, Connection, EmbedderClient, ServerInfo
from unified_embedding.corpus.journal import PART_SIZE, Journal, Part, fingerprint
from unified_embedding.corpus.picture_files import find_pictures
from unified_embedding.corpus.pipeline import Chunk, cut, embed_files, in_order, joined
from unified_embedding.corpus.vector_files import FORMATS, write_rows
from unified_embedding.errors import ClientError, ImageError, InputError, JournalError, RunError
from unified_embedding.image import parse_crops

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


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
    try:
        columns = selected(outputs)
        if out.suffix not in FORMATS:
            raise RunError(f"--out {out} ends with none of {', '.join(FORMATS)}")
        box = parse_crops(crop, 1)[0] if crop else None
        files = find_pictures(inputs)
        with EmbedderClient(
            url, timeout=timeout, max_inflight=inflight, **connection.options()
        ) as client:
            skipped = run(client, files, out, columns, box, inflight, restart)
    except KeyboardInterrupt:
        console.print("embed: interrupted; the same command continues from here")
        sys.exit(130)
    except (RunError, InputError, JournalError, ImageError, ClientError, ValueError, OSError) as e:
        console.print(f"embed: {e}", style="red")
        sys.exit(2)
    sys.exit(1 if skipped else 0)


def selected(outputs: str) -> tuple[str, ...]:
    """The columns that --outputs names. Raises RunError."""
    names = {name.strip() for name in outputs.split(",")}
    if names - set(OUTPUTS):
        raise RunError(f"--outputs {outputs} is not a selection of {','.join(OUTPUTS)}")
    return tuple(name for name in OUTPUTS if name in names)


def run(
    client: EmbedderClient,
    files: Sequence[Path],
    out: Path,
    outputs: Sequence[str],
    crop: Box | None,
    inflight: int,
    restart: bool,
) -> int:
    """Embed `files`, write `out`, and return how many files were skipped."""
    began = time.monotonic()
    server = client.info()
    journal = begin(out, server, outputs, crop, restart)
    parts = [files[start : start + PART_SIZE] for start in range(0, len(files), PART_SIZE)]
    marks = [fingerprint(part) for part in parts]
    missing = [index for index, mark in enumerate(marks) if not journal.holds(index, mark)]
    finished = sorted(set(range(len(parts))) - set(missing))
    skipped = sum(tell_skipped(journal.read(index)) for index in finished)
    chunks = [
        chunk for index in missing for chunk in cut(index, parts[index], server.max_batch_size)
    ]
    fresh = sum(len(chunk.files) for chunk in chunks)

    def work(chunk: Chunk) -> tuple[Chunk, Part]:
        return chunk, embed_files(client, chunk.files, server.version, outputs, crop)

    with (
        progress_bar() as progress,
        ThreadPoolExecutor(inflight) as pool,
        closing(client),  # Before the pool waits for its threads: an interrupt ends their calls.
        closing(in_order(pool, work, chunks, window=2 * inflight)) as answers,
    ):
        bar = progress.add_task("embedding", total=len(files), completed=len(files) - fresh)
        for index, answered in groupby(answers, key=lambda answer: answer[0].part):
            done = []
            for chunk, part in answered:
                done.append(part)
                skipped += tell_skipped(part)
                progress.advance(bar, len(chunk.files))
            journal.write(index, marks[index], joined(done))

    if skipped < len(files):
        write_rows(out, (journal.read(index).rows for index in range(len(parts))))
    journal.remove()
    if skipped == len(files):
        raise RunError(f"none of {len(files)} files could be embedded; {out} was not written")
    seconds = time.monotonic() - began
    console.print(
        f"{out}: {len(files) - skipped:,} rows, embedder version {server.version}; "
        f"{fresh:,} pictures in {seconds:.1f} s ({fresh / seconds:.0f}/s), "
        f"{len(files) - fresh:,} from an interrupted run, {skipped:,} skipped"
    )
    return skipped


def begin(
    out: Path, server: ServerInfo, outputs: Sequence[str], crop: Box | None, restart: bool
) -> Journal:
    """Begin a run, or continue an interrupted one. Raises JournalError."""
    settings = {
        "version": server.version,
        "outputs": ",".join(outputs),
        "crop": "" if crop is None else str(crop),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(out, settings, server.engine, restart)
    if journal.engine != server.engine:
        console.print(
            f"warning: the interrupted run used engine {journal.engine}, the server now runs "
            f"{server.engine}: rows of both may be compared, but a few bits differ",
            style="yellow",
        )
    return journal


def tell_skipped(part: Part) -> int:
    """Report the files of a part that have no row, and return their number."""
    for name, reason in part.skipped:
        shown = name.encode(errors="backslashreplace").decode()
        console.print(f"skipped {shown}: {reason}", style="yellow")
    return len(part.skipped)


class Rate(ProgressColumn):
    """Pictures per second."""

    def render(self, task: Task) -> Text:
        """The column's text."""
        return Text("" if task.speed is None else f"{task.speed:.0f} pictures/s")


def progress_bar() -> Progress:
    """A bar with count, pictures per second and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TextColumn("time left"),
        TimeRemainingColumn(),
        console=console,
    )
