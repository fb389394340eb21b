"""Embed a whole corpus through running servers: Ray in front, Parquet shards behind.

    python clients/backfill.py demo/ --out out/corpus
    python clients/backfill.py s3://bucket/images/ 'shards/*.tar' --out s3://bucket/corpus \\
        --url gpu-1:8001 --url gpu-2:8001 --ray auto --max-rate 2000

The output holds one folder per embedder version. Killed at any point and started again by the
same command, a run keeps its finished shards and ends with the same bytes as an undisturbed
one. Pictures that cannot be embedded are listed in quarantine.parquet with the reason. A server
that changes its version stops the run; the same command then starts a new corpus.

Exit code: 0, complete; 2, stopped by an error; 130, interrupted. Any other: killed, or ended by
Ray's core, which is told too. The same command continues.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unified_embedding.cli.options import connecting
from unified_embedding.client import DEFAULT_URL, Connection, ServerInfo
from unified_embedding.corpus.corpus import FOLDERS, HEADER, QUARANTINE, Corpus, Entry
from unified_embedding.corpus.fleet import Fleet
from unified_embedding.corpus.ray_session import each_shard, is_started, leave, start
from unified_embedding.corpus.sources import PassedOver, find
from unified_embedding.corpus.store import Store
from unified_embedding.corpus.text import printable
from unified_embedding.corpus.worker import Load, ShardWorker
from unified_embedding.errors import (
    ClientError,
    CorpusError,
    ImageError,
    InputError,
    RayFailedError,
    RunError,
    StoreError,
)
from unified_embedding.image import Limits

REPORT: Final = "report.json"
# Of all pictures, before a disk that loses what is written is given up.
ATTEMPTS: Final = 3

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


FAILURES: Final = (
    RunError,
    RayFailedError,
    InputError,
    StoreError,
    CorpusError,
    ClientError,
    ImageError,
    OSError,
)


@dataclass(frozen=True)
class Asked:
    """What a new corpus is made of."""

    inputs: tuple[str, ...]
    embeddings: bool
    shard_size: int
    image_column: str | None
    metadata: Path | None
    roots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What one run did; `finished` counts shards that an earlier run had left."""

    corpus: Corpus
    entries: list[Entry]
    finished: int
    images: int
    seconds: float


@connecting
def main(
    inputs: Annotated[
        list[str], typer.Argument(help="pictures, folders, globs, .tar, .parquet; local or s3://")
    ],
    out: Annotated[str, typer.Option(help="folder of the corpora, local or s3://")],
    url: Annotated[
        list[str] | None,
        typer.Option(help="gRPC address of a server; repeat it for several", show_default=False),
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="store float16 embeddings beside the codes")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="pictures per shard")] = 1024,
    max_inflight: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="requests in flight, over all workers; more is faster, and slows online requests",
            show_default="one per server",
        ),
    ] = None,
    max_rate: Annotated[
        float, typer.Option(min=0, help="pictures per second, over all workers; 0: no limit")
    ] = 0,
    batch: Annotated[
        int,
        typer.Option(min=0, help="pictures per request; 0: as many as the server takes at once"),
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ray actors that read and send; no more than requests in flight",
            show_default="2 at most",
        ),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Parquet column with pictures or their paths")
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="CSV, JSON lines or Parquet with a column image or file_name, relative to it"
        ),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="folder that paths in Parquet files may lead into, beside the file's own; "
            "repeat it for several",
            show_default=False,
        ),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option("--ray", help="address of a Ray cluster; by default, this machine")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="seconds per request")] = 60.0,
    patience: Annotated[
        float, typer.Option(min=0, help="seconds to keep trying while no server answers")
    ] = 300.0,
    *,
    connection: Connection,
) -> None:
    """Embed a corpus, shard by shard."""
    urls = tuple(url or [os.environ.get("UNIFIED_EMBEDDING_URL", DEFAULT_URL)])
    try:
        server = _ask(urls, timeout, connection)
        asked = Asked(
            tuple(inputs), embeddings, shard_size, image_column, metadata, tuple(root or ())
        )
        corpus = begin(Store(out), server, asked)
        inflight = max_inflight or len(urls)
        if workers and workers > inflight:
            console.print(
                f"backfill: {inflight} of {workers} workers are used, one for each request in "
                f"flight; --max-inflight {workers} uses all"
            )
        workers = min(workers or 2, inflight, corpus.header.shards)
        load = Load(
            urls=urls,
            batch=min(batch or server.max_batch_size, server.max_batch_size),
            inflight=max_inflight // workers if max_inflight else math.ceil(len(urls) / workers),
            rate=max_rate / workers,
            timeout=timeout,
            patience=patience,
            max_bytes=Limits.from_environment().max_bytes,
            connection=connection,
        )
        outcome = run(corpus, load, workers, ray_address)
        report(outcome, urls)
    except KeyboardInterrupt:
        console.print("backfill: interrupted; the same command continues from here")
        leave(130)
    except FAILURES as error:
        console.print(f"backfill: {error}", style="red")
        leave(2)
    leave(0)


def begin(out: Store, server: ServerInfo, asked: Asked) -> Corpus:
    """The corpus of the server's version: a begun one, or a new one with a plan.

    Raises:
        RunError: a corpus of this version was begun with other arguments.
        InputError: there is no picture.
    """
    store = out.within(server.version)
    named = tuple(map(printable, asked.inputs))
    if store.exists(HEADER):
        corpus = Corpus.open(store)
        header = corpus.header
        wanted = (named, asked.embeddings, asked.shard_size)
        if (header.inputs, header.embeddings, header.shard_size) != wanted:
            kept = f"{' '.join(header.inputs)} --shard-size {header.shard_size}"
            kept += " --embeddings" if header.embeddings else ""
            raise RunError(
                f"{store} was begun with other arguments ({kept}); give those to continue it, or "
                "another --out"
            )
        return corpus
    passed = PassedOver()
    with console.status("looking for pictures"):
        return Corpus.begin(
            store,
            server.version,
            server.dim,
            asked.embeddings,
            named,
            find(asked.inputs, asked.image_column, asked.metadata, asked.roots, passed),
            asked.shard_size,
            passed,
        )


def run(corpus: Corpus, load: Load, workers: int, ray_address: str | None) -> Outcome:
    """Embed every shard that is not finished, and complete the corpus."""
    began = time.monotonic()
    header = corpus.header
    corpus.store.sweep(*FOLDERS)
    finished = _sound(corpus, {})
    earlier, done, fresh = len(finished), _pictures(finished), 0
    with _progress() as progress:
        bar = progress.add_task("embedding", total=header.images, completed=done, rate="")
        while len(finished) < header.shards:
            missing = [shard for shard in range(header.shards) if shard not in finished]
            for entry in _embed(corpus, load, missing, workers, ray_address):
                fresh += entry.rows + entry.bad
                rate = f"{fresh / (time.monotonic() - began):.0f} pictures/s"
                progress.update(bar, completed=min(done + fresh, header.images), rate=rate)
            finished = _sound(corpus, finished)
            if fresh > ATTEMPTS * header.images:
                raise RunError(f"what is written to {corpus.store} does not stay as it is written")
    entries = corpus.complete()
    return Outcome(corpus, entries, earlier, fresh, time.monotonic() - began)


def _sound(corpus: Corpus, checked: Mapping[int, Entry]) -> dict[int, Entry]:
    """The finished shards; those whose files are damaged or missing are forgotten, and told."""
    finished = corpus.finished()
    unchecked = [entry for shard, entry in finished.items() if checked.get(shard) != entry]
    damaged = corpus.damaged(unchecked)
    for entry in damaged:
        corpus.forget(finished.pop(entry.shard))
    if damaged:
        shards = ", ".join(str(entry.shard) for entry in damaged[:10])
        console.print(
            f"backfill: {len(damaged)} finished shards are damaged or missing and are done again: "
            f"{shards}{', ...' if len(damaged) > 10 else ''}",
            style="yellow",
        )
    return finished


def _pictures(entries: Mapping[int, Entry]) -> int:
    return sum(entry.rows + entry.bad for entry in entries.values())


def _embed(
    corpus: Corpus, load: Load, shards: list[int], workers: int, address: str | None
) -> Iterator[Entry]:
    if not is_started():
        start(address, workers)
    results = each_shard(partial(ShardWorker, corpus, load), shards, min(workers, len(shards)))
    with closing(results):
        for entry, problem in results:
            if problem:
                raise RunError(f"{problem}; the same command continues from here")
            yield entry


def _ask(urls: tuple[str, ...], timeout: float, connection: Connection) -> ServerInfo:
    fleet = Fleet(urls, timeout=timeout, connection=connection)
    try:
        return fleet.info()
    finally:
        fleet.close()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("time left"),
        TimeRemainingColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def report(outcome: Outcome, urls: tuple[str, ...]) -> None:
    """Print what was done, and leave it in the corpus as report.json."""
    corpus, entries = outcome.corpus, outcome.entries
    rows, bad = sum(entry.rows for entry in entries), sum(entry.bad for entry in entries)
    facts = {
        "version": corpus.header.version,
        "engines": sorted({engine for entry in entries for engine in entry.engines}),
        "servers": list(urls),
        "rows": rows,
        "bad": bad,
        "shards": len(entries),
        "shards_of_earlier_runs": outcome.finished,
        "images_this_run": outcome.images,
        "seconds_this_run": round(outcome.seconds, 3),
        "images_per_second": round(outcome.images / outcome.seconds, 1),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    corpus.store.write(REPORT, (json.dumps(facts, indent=2) + "\n").encode())
    console.print(
        f"{corpus.store}: {rows:,} rows in {len(entries)} shards, {outcome.finished} of them from "
        f"earlier runs; {outcome.images:,} pictures in {outcome.seconds:.1f} s"
    )
    if bad:
        console.print(f"{bad:,} pictures have no row: {corpus.store}/{QUARANTINE}", style="yellow")
    for sentence in corpus.passed_over().sentences():
        console.print(f"passed over: {sentence}", style="yellow")
