"""Benchmark of code search: ours, bare FAISS, USearch and LanceDB on the same codes in one run.

python bench/index_bench.py [--rows 100000 --rows 1000000] [--full]
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from subprocess import PIPE
from typing import Annotated, Any, Final

import faiss
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from unified_embedding.load.index_data import World
from unified_embedding.load.index_systems import SYSTEMS, Job, K
from unified_embedding.measure.files import write_json, write_text
from unified_embedding.measure.provenance import machine
from unified_embedding.serving.local_server import child

PACKAGES: Final = ("faiss-cpu", "usearch", "lancedb", "numpy", "pyarrow")
# At 10 million codes a graph takes hours to build and LanceDB is not asked.
FULL_ROWS: Final = 10_000_000
FULL_SYSTEMS: Final = ("exact", "ivf")
LIMIT_BARE, LIMIT_METADATA, LIMIT_ROWS = 1.3, 1.5, 1_000_000

console = Console()


def main(
    rows: Annotated[list[int] | None, typer.Option(help="corpus sizes")] = None,
    full: Annotated[bool, typer.Option(envvar="FULL", help="also 10,000,000 codes")] = False,
    dim: Annotated[int, typer.Option(help="dimensions; a code has dim / 8 bytes")] = 1280,
    queries: Annotated[int, typer.Option(help="queries per system")] = 200,
    seed: Annotated[int, typer.Option(help="seed of the synthetic codes")] = 0,
    out: Annotated[Path, typer.Option(help="where the report is written")] = Path("results"),
) -> None:
    """Measure recall, latency, memory and build time; takes about 12 minutes on 2 cores."""
    missing = [name for name in PACKAGES if not _version(name)]
    if missing:
        console.print(f"[red]{', '.join(missing)} is not installed: pip install -e '.\\[peers]'")
        raise typer.Exit(2)
    sizes = list(rows or (100_000, 1_000_000)) + ([FULL_ROWS] if full else [])
    report: dict[str, Any] = {"environment": _environment(seed, dim, queries), "sizes": {}}
    console.print_json(data=report["environment"])
    for size in sizes:
        names = FULL_SYSTEMS if size >= FULL_ROWS else tuple(SYSTEMS)
        results = _measure(size, dim, queries, seed, names)
        report["sizes"][str(size)] = results
        console.print(_table(size, dim, results))
    write_json(out / "index-bench.json", report)
    write_text(out / "index-bench.md", _markdown(report, dim))
    console.print(f"written: {out / 'index-bench.json'}, {out / 'index-bench.md'}")
    if not _verdict(report["sizes"]):
        raise typer.Exit(1)


def _measure(
    rows: int, dim: int, queries: int, seed: int, names: Sequence[str]
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="index-bench-") as folder, Progress() as progress:
        task = progress.add_task(f"{rows:,} codes: making them", total=len(names) + 1)
        _make(Job(Path(folder), rows, dim, seed), queries)
        for name in names:
            progress.update(task, advance=1, description=f"{rows:,} codes: {name}")
            arguments = [name, folder, str(rows), str(dim), str(seed)]
            command = [sys.executable, "-m", "unified_embedding.load.index_systems", *arguments]
            with child(command, stdout=PIPE, text=True) as run:
                said, _ = run.communicate()
            if run.returncode:
                console.print(f"[red]{name} failed with exit status {run.returncode}")
                raise typer.Exit(1)
            results += json.loads(said.splitlines()[-1])
        progress.update(task, advance=1)
    return results


def _make(job: Job, queries: int) -> None:
    asked = World(job.rows, job.dim, job.seed).queries(queries)
    nearest = np.full((queries, K), np.iinfo(np.int32).max, dtype=np.int32)
    for codes in job.blocks():
        distances, _ = faiss.knn_hamming(asked, codes, K)
        nearest = np.sort(np.concatenate((nearest, distances), axis=1), axis=1)[:, :K]
    np.save(job.folder / "queries.npy", asked)
    np.save(job.folder / "truth.npy", nearest[:, -1])


COLUMNS: Final = ("index", "recall@10", "p50 ms", "p99 ms", "p50 / bare", "build s", "MB")


def _cells(results: list[dict[str, Any]]) -> list[list[str]]:
    bare = results[0]["p50_s"]
    return [
        [
            f"{row['system']} {row['what']}",
            f"{row['recall']:.3f}",
            f"{row['p50_s'] * 1e3:.2f}",
            f"{row['p99_s'] * 1e3:.2f}",
            f"{row['p50_s'] / bare:.2f}",
            f"{row['build_s']:.1f}",
            f"{row['memory'] / 1e6:,.0f}",
        ]
        for row in results
    ]


def _table(rows: int, dim: int, results: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{rows:,} codes of {dim // 8} bytes, one query at a time")
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if place else "left")
    for cells in _cells(results):
        table.add_row(*cells)
    return table


def _markdown(report: dict[str, Any], dim: int) -> str:
    lines = ["# Code search", "", "```json", json.dumps(report["environment"], indent=2), "```"]
    for size, results in report["sizes"].items():
        lines += ["", f"## {int(size):,} codes of {dim // 8} bytes", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
        lines += ["| " + " | ".join(cells) + " |" for cells in _cells(results)]
    return "\n".join(lines) + "\n"


def _verdict(sizes: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether the exact search of a million codes stayed within its limits; True when not run."""
    if str(LIMIT_ROWS) not in sizes:
        return True
    bare, plain, full = (row["p50_s"] for row in sizes[str(LIMIT_ROWS)][:3])
    good = bool(plain <= LIMIT_BARE * bare and full <= LIMIT_METADATA * bare)
    console.print(
        f"{'[green]VALID' if good else '[red]INVALID'}[/] at {LIMIT_ROWS:,} codes: exact p50 "
        f"{plain / bare:.2f} x bare FAISS (limit {LIMIT_BARE}), with metadata {full / bare:.2f} x "
        f"(limit {LIMIT_METADATA})"
    )
    return good


def _environment(seed: int, dim: int, queries: int) -> dict[str, Any]:
    return {
        **machine(),
        **{name: _version(name) for name in PACKAGES},
        "faiss_options": faiss.get_compile_options().strip(),
        "seed": seed,
        "dim": dim,
        "queries": queries,
        "k": K,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    typer.run(main)
