"""Build an index from a back-filled corpus, add to it, look at it, export it.

python clients/index.py build out/corpus --out out/index [--kind flat|ivf|hnsw]
python clients/index.py add out/newer --index out/index
python clients/index.py info out/index
python clients/index.py verify out/index
python clients/index.py export out/index --to postgres|milvus --out out/export

Several versions beside one another, and which of them is searched (docs/upgrade.md):

python clients/index.py gate out/live/green --queries queries.csv
python clients/index.py activate out/live/green
python clients/index.py remove out/live/blue
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unified_embedding.cli.options import Urls, connecting, errors, failing
from unified_embedding.client import DEFAULT_URL, Connection, Retry
from unified_embedding.corpus.corpus import Corpus, Entry, choose
from unified_embedding.corpus.store import Store
from unified_embedding.errors import (
    CodeIndexError,
    CorpusError,
    EngineWarning,
    shown,
)
from unified_embedding.index import Batch, CodeIndex, Origin, Settings, following
from unified_embedding.index.active import place_of
from unified_embedding.index.export import to_milvus, to_postgres
from unified_embedding.index.following import open_index
from unified_embedding.retrieval import Interval
from unified_embedding.search.pictures import Pictures, roots_of
from unified_embedding.search.searching import DEFAULT_INDEX, SAMPLE, embedder_for
from unified_embedding.search.upgrade import compare, read_queries

console = Console(highlight=False, soft_wrap=True)
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


class Kind(StrEnum):
    """How an index is searched."""

    flat = "flat"
    ivf = "ivf"
    hnsw = "hnsw"


class Target(StrEnum):
    """Where an export goes."""

    postgres = "postgres"
    milvus = "milvus"


@app.command()
@failing("index build")
def build(
    corpus: Annotated[str, typer.Argument(help="output of a back-fill, local or s3://")],
    out: Annotated[Path, typer.Option(help="folder of the index")] = DEFAULT_INDEX,
    kind: Annotated[Kind, typer.Option(help="exact, or one of the approximate kinds")] = Kind.flat,
    version: Annotated[
        str | None, typer.Option(help="embedder version, where the corpus holds several")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="threads that build ivf and hnsw")] = 1,
) -> None:
    """Build an index of a complete corpus; a complete new index replaces an existing one."""
    source = choose(Store(corpus), version)
    entries = source.require_complete()
    with console.status("") as status:
        index = CodeIndex.build(
            out,
            batches(source, entries, source.header.embeddings),
            origin_of(source, entries),
            source.header.dim,
            settings=Settings(kind=kind.value, threads=threads),
            embeddings=source.header.embeddings,
            roots=roots_of(source.header.inputs),
            progress=lambda step, rows: status.update(f"{step}, {rows:,} rows"),
        )
    describe(index)
    warn_of_unseen(index)


@app.command()
@failing("index add")
def add(
    corpus: Annotated[str, typer.Argument(help="output of a back-fill, local or s3://")],
    index: Annotated[Path, typer.Option(help="folder of the index")] = DEFAULT_INDEX,
) -> None:
    """Add a complete corpus of the same embedder version; ids that are in the index stay."""
    opened = open_index(index)
    stores = opened.header.embeddings
    source = choose(Store(corpus), opened.header.origin.version)
    entries = source.require_complete()
    if stores and not source.header.embeddings:
        raise CorpusError(
            f"{index} stores embeddings and {corpus} has none; back-fill it with --embeddings"
        )
    origin, before = origin_of(source, entries), len(opened)
    there = 0
    warnings.simplefilter("ignore", EngineWarning)
    if origin.engine != opened.header.origin.engine:
        errors.print(
            f"warning: the new codes are of engine {origin.engine}, the index of "
            f"{opened.header.origin.engine}; results near a tie may change order",
            style="yellow",
        )
    for batch in batches(source, entries, stores):
        new = np.flatnonzero([name not in opened for name in batch.ids])
        there += len(batch.ids) - len(new)
        opened.add(
            [batch.ids[row] for row in new],
            batch.codes[new],
            origin,
            metadata=pa.table(batch.metadata).take(new),
            embeddings=None if batch.embeddings is None else batch.embeddings[new],
        )
    if len(opened) > before:
        with console.status("") as status:
            opened.save(
                progress=lambda step, rows: status.update(f"{step}, {rows:,} rows"),
                roots=roots_of(source.header.inputs),
            )
    kept = f"; {there:,} were in the index and stay as they are" if there else ""
    console.print(f"{len(opened) - before:,} pictures added{kept}", markup=False)
    describe(opened)
    warn_of_unseen(opened)


@app.command()
@failing("index info")
def info(
    index: Annotated[Path, typer.Argument(help="folder of the index")] = DEFAULT_INDEX,
) -> None:
    """Say what an index holds."""
    describe(open_index(index))


@app.command()
@failing("index verify")
def verify(
    index: Annotated[Path, typer.Argument(help="folder of the index")] = DEFAULT_INDEX,
) -> None:
    """Compare every file of an index with its checksum, about a second a gigabyte."""
    files = CodeIndex.open(index, check=True).header.files
    if not files:
        raise CodeIndexError(f"{index} was saved without checksums; build it again")
    size = sum(file.size for file in files.values())
    console.print(f"{len(files)} files, {size / 1e6:,.1f} MB: whole", markup=False)


@app.command()
@failing("index export")
def export(
    index: Annotated[Path, typer.Argument(help="folder of the index")] = DEFAULT_INDEX,
    to: Annotated[Target, typer.Option(help="program that will load it")] = Target.postgres,
    out: Annotated[Path, typer.Option(help="folder of the files")] = Path("out/export"),
) -> None:
    """Write files for PostgreSQL (pgvector) or Milvus."""
    writer = to_postgres if to is Target.postgres else to_milvus
    files = writer(open_index(index), out)
    for path in files:
        console.print(str(path), markup=False)
    if to is Target.postgres:
        console.print(f"load them: cd {out} && psql -f schema.sql -f load.sql", markup=False)


@app.command()
@connecting
@failing("index gate")
def gate(
    index: Annotated[Path, typer.Argument(help="folder of the new index")],
    queries: Annotated[
        Path,
        typer.Option(
            help="CSV: image (a picture, relative to the file), id (a right answer; further lines "
            "for further ones) and cluster (queries that succeed or fail together)"
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(help="the index it would replace", show_default="the active one beside it"),
    ] = None,
    k: Annotated[
        int, typer.Option("--k", min=1, help="hits among which a right answer counts")
    ] = 10,
    margin: Annotated[
        float, typer.Option(min=0.01, help="points of recall, of 100, that may be lost")
    ] = 2.0,
    url: Urls = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="seconds per call")] = 60.0,
    *,
    connection: Connection,
) -> None:
    """Compare a new index with the active one on labelled queries. Exit code 1: refused.

    It is refused when the 95 % interval of the paired difference of recall reaches below the
    margin, or when it lacks a picture that the other one has.
    """
    asked = read_queries(queries)
    new, old = open_index(index), open_index(against or place_of(index))
    if new.folder == old.folder:
        raise CodeIndexError(f"{index} is the active index itself; name another one")
    urls, retry = url or [DEFAULT_URL], Retry()
    with (
        embedder_for(old.header.origin.version, urls, timeout, retry, connection) as before,
        embedder_for(new.header.origin.version, urls, timeout, retry, connection) as after,
    ):
        verdict = compare((old, before), (new, after), asked, k, margin)
    console.print(
        f"recall@{k} in percent of {verdict.queries:,} queries in {verdict.clusters:,} clusters; "
        "95 % intervals by bootstrap over clusters",
        markup=False,
    )
    table = Table.grid(padding=(0, 2))
    for name, opened, recall in (("old", old, verdict.old), ("new", new, verdict.new)):
        where = f"{opened.folder}, version {opened.header.origin.version}"
        table.add_row(name, escape(_interval(recall)), escape(f"{len(opened):,} rows, {where}"))
    limit = f"paired; its lower end must not be below {-margin:+g}"
    table.add_row("change", escape(_interval(verdict.change, "+")), limit)
    console.print(table)
    for problem in verdict.problems:
        errors.print(f"index gate: refused: {problem}", style="red")
    if verdict.problems:
        sys.exit(1)
    console.print("the new index may take over", style="green")


@app.command()
@failing("index activate")
def activate(
    index: Annotated[Path, typer.Argument(help="folder of the index")],
) -> None:
    """Search this index from now on, wherever the active.json beside it is followed."""
    active = following.activate(index)
    console.print(f"{index} is active: version {active.version}", markup=False)


@app.command()
@failing("index remove")
def remove(
    index: Annotated[Path, typer.Argument(help="folder of the index")],
) -> None:
    """Delete an index that stands beside the active one. The active one is refused."""
    following.remove(index)
    console.print(f"{index} is removed", markup=False)


def _interval(value: Interval, sign: str = "") -> str:
    return f"{value.mean:{sign}.1f} [{value.low:{sign}.1f}, {value.high:{sign}.1f}]"


def batches(corpus: Corpus, entries: list[Entry], with_embeddings: bool) -> Iterator[Batch]:
    """The corpus, shard by shard, as the index takes it."""
    width, dim = corpus.header.dim // 8, corpus.header.dim
    for table in corpus.tables(entries):
        codes = np.frombuffer(table.column("code").combine_chunks().buffers()[1], np.uint8)
        embeddings = None
        if with_embeddings:
            flat = table.column("embedding").combine_chunks().flatten()
            embeddings = flat.to_numpy().reshape(-1, dim)
        yield Batch(
            table.column("id").to_pylist(),
            codes.reshape(-1, width),
            table.select(["source", "metadata"]),
            embeddings,
        )


def origin_of(corpus: Corpus, entries: list[Entry]) -> Origin:
    """Who computed the corpus' codes."""
    return Origin(corpus.header.version, most_used_engine(entries))


def most_used_engine(entries: list[Entry]) -> str:
    """The engine id of most shards; the others of a mixed corpus differ in a few bits."""
    counts = Counter(engine for entry in entries for engine in entry.engines)
    if not counts:
        raise CorpusError("the corpus holds no picture that could be embedded")
    if len(counts) > 1:
        told = ", ".join(f"{engine} ({count} shards)" for engine, count in counts.most_common())
        errors.print(f"warning: the corpus was embedded by several engines: {told}", style="yellow")
    return counts.most_common(1)[0][0]


def warn_of_unseen(index: CodeIndex) -> None:
    """Say so when pictures that are here will not be shown, as when inputs were relative."""
    pictures = Pictures(index.header.roots)
    sources = [(row.metadata["source"], row.metadata) for row in index.sample(SAMPLE)]
    unseen = [at for at, row in sources if Path(at).is_file() and pictures.path(row) is None]
    if unseen:
        errors.print(
            f"warning: pictures such as {shown(unseen[0])} lie outside the corpus' inputs, as they "
            "are named, seen from here; search.py and page.py show them with --root FOLDER",
            style="yellow",
        )


def describe(index: CodeIndex) -> None:
    """Print an index's header."""
    header = index.header
    size = sum(path.stat().st_size for path in index.folder.iterdir())
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("index", f"{index.folder}, {size / 1e6:,.1f} MB"),
        ("rows", f"{len(index):,}"),
        ("kind", header.settings.kind),
        ("code", f"{header.dim // 8} bytes, D = {header.dim}"),
        ("embeddings", "float16" if header.embeddings else "not stored"),
        ("embedder", f"version {header.origin.version}"),
        ("engine", header.origin.engine),
        ("pictures", ", ".join(header.roots) or "nowhere on this machine"),
    ):
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table)
