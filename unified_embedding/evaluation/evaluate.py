"""Evaluate: `python -m unified_embedding.evaluation [CONFIG]` writes docs/results.md.

Embeddings are cached by embedder and by picture, so a second run only searches, and an
interrupted one goes on.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from unified_embedding.datasets.store import data_home
from unified_embedding.errors import DataError
from unified_embedding.evaluation import page
from unified_embedding.evaluation.agreement import Agreement, load_agreements
from unified_embedding.evaluation.charts import all_charts
from unified_embedding.evaluation.claims import claims
from unified_embedding.evaluation.config import EvaluationConfig, load_config
from unified_embedding.evaluation.results import Results, as_json
from unified_embedding.evaluation.run import ANY, Bench, compare, evaluate, open_bench
from unified_embedding.evaluation.targets import targets
from unified_embedding.measure.files import write_text
from unified_embedding.protocols.measure import Cell
from unified_embedding.retrieval import COMPARISONS
from unified_embedding.training.program import resumable
from unified_embedding.whole_files import write_whole

PAGE: Final = "results.md"
FIGURES: Final = "results.json"
MANIFEST: Final = "manifest.csv"
CONFIG: Final = Path("configs/evaluate.yaml")
DOCS: Final = Path("docs")
"""Where the page of the published test set is."""


def write(results: Results, out: Path, agreements: list[Agreement], command: str) -> Path:
    """Write `out/results.md`, its figures as JSON and its pictures; returns the page's path."""
    charts = all_charts(results)
    for name, picture in charts.items():
        write_whole(out / "images" / name, picture)
    text = page.render(
        results, claims(results), targets(results), agreements, list(charts), command
    )
    write_text(out / FIGURES, json.dumps(as_json(results), indent=1) + "\n")
    write_text(out / PAGE, text)
    return out / PAGE


def main(
    config: Annotated[Path, typer.Argument(help="YAML file.")] = CONFIG,
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="Your own test set instead of the configuration's or `make data`'s; implies "
            "--frozen any and needs --out."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure this row alone, and write no page.")
    ] = None,
    compare_with: Annotated[
        str | None,
        typer.Option(
            "--compare",
            help="server:HOST:PORT, backfill:HOST:PORT (gallery through back-fill and index) or an "
            "installed engine's folder: how far does it agree?",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Row for --compare; by default the one with the same version."),
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Forget cached vectors and trained maps.")] = False,
    frozen: Annotated[
        str | None, typer.Option(help="Digest of the test set in place of CONFIG's; any: no check.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Caches; by default in the data folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results.md and images/; docs without --manifest.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtimes; 0: all cores.")] = 0,
) -> None:
    """Measure every embedder of CONFIG on the frozen test set; write the page and its pictures."""
    console = Console(stderr=True)
    with resumable(console, "evaluation", " with what is cached"):
        if manifest is not None:
            frozen = frozen or ANY
            if out is None and not only and compare_with is None:
                raise DataError(
                    f"give --out DIR for the page about {manifest}: {DOCS} holds that of the "
                    "published test set"
                )
        chosen = _chosen(load_config(config), only, frozen)
        path = manifest or chosen.manifest or data_home() / MANIFEST
        bench = open_bench(chosen, path, cache or data_home() / "evaluation", threads, console)
        if compare_with is not None:
            _compare(bench, compare_with, against)
        else:
            results = evaluate(bench, fresh)
            _print_rows(results)
            if not only:
                _write_page(bench, results, out or DOCS, _command(config, manifest, out))


def _chosen(
    config: EvaluationConfig, only: list[str] | None, frozen: str | None
) -> EvaluationConfig:
    changes: dict[str, object] = {} if frozen is None else {"frozen": frozen}
    if only:
        names = [row.name for row in config.rows]
        unknown = [name for name in only if name not in names]
        if unknown:
            raise DataError(f"no row is called {unknown[0]!r}; there are {names}")
        rows = [row.model_copy(update={"baseline": None}) for row in config.rows]
        changes |= {"rows": [row for row in rows if row.name in only], "last_layers": None}
    return config.model_copy(update=changes)


def _command(config: Path, manifest: Path | None, out: Path | None) -> str:
    """What writes the page again."""
    if (config, manifest, out) == (CONFIG, None, None):
        return "make evaluate"
    options = {"--manifest": manifest, "--out": out}
    given = [f"{name} {path}" for name, path in options.items() if path is not None]
    return " ".join(["python -m unified_embedding.evaluation", str(config), *given])


def _compare(bench: Bench, source: str, against: str | None) -> None:
    found = compare(bench, source, against)
    found.save(bench.cache / "agreements")
    table = Table(
        "by", "same top result", "figure that changed most", "points", "queries", box=SIMPLE_HEAD
    )
    for kind in COMPARISONS:
        task, metric, moved, queries = found.worst[kind]
        share = f"{found.same_first[kind]:.2%}"
        table.add_row(kind, share, f"{task} {metric}", f"{100 * moved:+.3f}", f"{queries:+.2f}")
    console = Console()
    console.print(f"{found.engine} against row {found.row!r}, version {found.version}")
    console.print(table)


def _write_page(bench: Bench, results: Results, out: Path, command: str) -> None:
    versions = [str((result.facts or {}).get("version")) for result in results.rows]
    agreements = load_agreements(bench.cache / "agreements", results.test_set.digest, versions)
    print(write(results, out, agreements, command))


def _print_rows(results: Results) -> None:
    columns = page.COLUMNS
    table = Table("embedder", "by", *(f"{task} {metric}" for task, metric in columns),
                  box=SIMPLE_HEAD)  # fmt: skip
    for result in results.rows:
        if result.measurement is None:
            table.add_row(result.row.name, *[page.NOT_RUN for _ in range(1 + len(columns))])
            continue
        for kind in COMPARISONS:
            cells = [result.interval(Cell(task, metric, kind)) for task, metric in columns]
            texts = ["" if cell is None else page.percent(cell.mean) for cell in cells]
            table.add_row(result.row.name if kind == "float" else "", kind, *texts)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
