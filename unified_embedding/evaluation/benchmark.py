"""A public benchmark: `python -m unified_embedding.evaluation.benchmark sop FOLDER`.

Embeddings are cached by embedder and by picture, so an interrupted run goes on where it was.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.progress import Progress, track

from unified_embedding.datasets.store import data_home
from unified_embedding.errors import DataError, shown
from unified_embedding.evaluation.embedders import LocalEmbedder, open_embedder, resized
from unified_embedding.evaluation.features import FeatureCache
from unified_embedding.image import Preprocessing
from unified_embedding.measure.files import write_json, write_text
from unified_embedding.protocols.benchmarks import BENCHMARKS, Benchmark, Copy, measure_copy
from unified_embedding.protocols.measure import Cell, Measurement
from unified_embedding.retrieval import COMPARISONS
from unified_embedding.training.program import resumable

RELEASED: Final = "models/unified-embedder-lite0"
CROPPED: Final = Preprocessing(resize="center_crop", crop_pct=0.875)

Resize = Literal["published", "own"]


@dataclass(frozen=True, eq=False)
class Row:
    """One embedder's figures.

    Attributes:
        source: see `embedders`.
        pixels: how its pictures were resized, in words.
        dim: width of its embedding.
        measurement: by float, asymmetric and code; cells are named by the part of the queries.
    """

    source: str
    pixels: str
    dim: int
    measurement: Measurement


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(BENCHMARKS)}.")],
    folder: Annotated[Path, typer.Argument(help="Your copy, unpacked, in its published layout.")],
    embedder: Annotated[
        list[str] | None,
        typer.Option(help="trunk:NAME@SIZE, RUN/last.pt, a model's folder, server:HOST:PORT ..."),
    ] = None,
    resize: Annotated[
        Resize, typer.Option(help="published: as other rows see the pictures; own: as served.")
    ] = "published",
    out: Annotated[Path, typer.Option(help="Folder of NAME.md and NAME.json.")] = Path(
        "out/benchmarks"
    ),
    cache: Annotated[
        Path | None, typer.Option(help="Embeddings; by default in the data folder.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtimes; 0: all cores.")] = 0,
) -> None:
    """Measure embedders on a public benchmark and put them beside published rows."""
    console = Console(stderr=True)
    with resumable(console, "benchmark", " with what is cached"):
        if name not in BENCHMARKS:
            raise DataError(f"{shown(name)} is not one of {', '.join(BENCHMARKS)}")
        benchmark = BENCHMARKS[name]
        with console.status(f"reading {folder}"):
            copy = benchmark.open(folder)
        found = track(range(len(copy.images)), "hashing", console=console, transient=True)
        sha256 = [hashlib.sha256(copy.read(row)).hexdigest() for row in found]
        features = FeatureCache((cache or data_home() / "evaluation") / "features", console)
        rows = [
            _measure(benchmark, copy, sha256, source, resize, features, threads, console)
            for source in embedder or [RELEASED]
        ]
        report = render(benchmark, copy, rows)
        write_json(out / f"{name}.json", as_json(benchmark, copy, rows))
        write_text(out / f"{name}.md", report)
        print(f"{report}\n{out / name}.md")


def _measure(
    benchmark: Benchmark,
    copy: Copy,
    sha256: list[str],
    source: str,
    resize: Resize,
    features: FeatureCache,
    threads: int,
    console: Console,
) -> Row:
    chosen = open_embedder(source, threads)
    if benchmark.cropped and resize == "published":
        chosen = resized(chosen, CROPPED)
    vectors = features.vectors(
        chosen,
        sha256,
        copy.read,
        f"{source}: embedding",
        [str(copy.folder / i) for i in copy.images],
    )
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{source}: searching", total=len(COMPARISONS) * len(copy.queries))
        measurement = measure_copy(
            copy, vectors, benchmark.metrics, advance=lambda count: progress.advance(bar, count)
        )
    return Row(source, _pixels(chosen), vectors.shape[1], measurement)


def _pixels(embedder: object) -> str:
    if not isinstance(embedder, LocalEmbedder):
        return "by the server"
    how = embedder.preprocessing
    if how.resize == "letterbox":
        return f"whole, in a square of {how.size}"
    return f"shorter side {round(how.size / how.crop_pct)}, centre {how.size}"


def render(benchmark: Benchmark, copy: Copy, rows: list[Row]) -> str:
    """The report, Markdown."""
    columns = benchmark.columns()
    lines = [
        f"# {benchmark.title}",
        "",
        f"{len(copy.queries):,} queries, {len(copy.gallery):,} gallery pictures. Percent; 95 % "
        "intervals resample whole classes, and do not cover the randomness of training.",
        "",
    ]
    if differences := benchmark.incomplete(copy):
        lines += [
            "**Not comparable with published figures**: this copy is not the published set "
            f"({'; '.join(differences)}).",
            "",
        ]
    lines += [
        f"| embedder | dim | pictures | by | {' | '.join(columns)} |",
        f"|{'---|' * (4 + len(columns))}",
    ]
    for row in rows:
        for comparison in COMPARISONS:
            cells = [
                row.measurement.samples[Cell(part, metric, comparison)].interval()
                for part, metric in columns.values()
            ]
            texts = [
                f"{100 * cell.mean:.2f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
                for cell in cells
            ]
            first = comparison == COMPARISONS[0]
            named = f"{row.source} | {row.dim:,} | {row.pixels}" if first else " | | "
            lines.append(f"| {named} | {comparison} | {' | '.join(texts)} |")
    lines += [
        "",
        "## Published",
        "",
        f"| row | by | {' | '.join(columns)} | source |",
        f"|{'---|' * (3 + len(columns))}",
        *(
            f"| {row.name} | {row.by} | "
            f"{' | '.join(_figure(row.figures.get(column)) for column in columns)} | {row.source} |"
            for row in benchmark.published
        ),
        "",
        "by: float is the cosine, asymmetric a float query against stored sign bits, code the "
        "Hamming distance of sign bits. Equal distances share the credit.",
        "",
    ]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def as_json(benchmark: Benchmark, copy: Copy, rows: list[Row]) -> Mapping[str, Any]:
    """Every figure with its interval, as shares."""
    columns = benchmark.columns().values()
    return {
        "benchmark": benchmark.title,
        "queries": len(copy.queries),
        "gallery": len(copy.gallery),
        "differs": benchmark.incomplete(copy),
        "rows": [
            {
                "embedder": row.source,
                "dim": row.dim,
                "pictures": row.pixels,
                "figures": [
                    {
                        "part": part,
                        "metric": metric,
                        "comparison": comparison,
                        **vars(row.measurement.samples[Cell(part, metric, comparison)].interval()),
                    }
                    for part, metric in columns
                    for comparison in COMPARISONS
                ],
            }
            for row in rows
        ],
    }


if __name__ == "__main__":
    typer.run(main)
