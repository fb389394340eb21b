"""`make demo`: serve the demo gallery for real, search it, print a table, draw a contact sheet."""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.cli.options import ModelName
from unified_embedding.client import EmbedderClient
from unified_embedding.errors import EmbeddingError
from unified_embedding.gallery import CATALOGUE, SHOT, Gallery, Picture, relevance
from unified_embedding.names import DEFAULT
from unified_embedding.retrieval import COMPARISONS, Comparison, bootstrap, recall_at, scores
from unified_embedding.search import contact_sheet as _contact_sheet
from unified_embedding.serving.local_server import end_in_order, running
from unified_embedding.spec import EmbedderSpec

LATENCY_CALLS: Final = 50
SHEET_ROWS: Final = 9
SHEET_TOP: Final = 5

console = Console()


@dataclass(frozen=True)
class Answers:
    """Everything the server said about the gallery, and how fast."""

    embedding: NDArray[np.float32]
    code: NDArray[np.uint8]
    version: str
    engine: str
    latency_ms: float
    images_per_second: float


def main(
    gallery: Annotated[Path, typer.Option(help="Folder with gallery.csv.")] = ROOT / "demo",
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = (
        ROOT / "model_repository"
    ),
    out: Annotated[Path, typer.Option(help="Where the contact sheet goes.")] = (
        ROOT / "out" / "demo.png"
    ),
    model_name: ModelName = DEFAULT.ensemble,
) -> None:
    """Embed the gallery through a real Triton server and find products from their shots."""
    end_in_order()
    try:
        pictures = Gallery.load(gallery)
        console.print("starting tritonserver ...")
        with (
            running(repository) as server,
            EmbedderClient(server.grpc_url, model=model_name) as client,
        ):
            answers = ask(client, pictures)
            spec = EmbedderSpec.load(repository / client.names.embedder / "1")
    except (EmbeddingError, ValueError) as error:
        console.print(f"[bold red]demo failed:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    report(answers, pictures)
    if spec.random:
        console.print("random weights: these recalls mean nothing", style="yellow")
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet(answers, pictures).save(out)
    console.print(f"contact sheet: {out}", highlight=False, soft_wrap=True)


def ask(client: EmbedderClient, gallery: Gallery) -> Answers:
    """Embed every picture through the server; time single calls and the whole."""
    images = [picture.path.read_bytes() for picture in gallery.pictures]
    client.embed(images[:16])
    waits = []
    for image in track(images[:LATENCY_CALLS], "one at a time", transient=True):
        begin = time.perf_counter()
        client.embed([image])
        waits.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    with console.status(f"embedding {len(images)} pictures"):
        answer = client.embed(images)
    seconds = time.perf_counter() - begin
    if answer.embedding is None or answer.code is None:
        raise EmbeddingError("the server's answer lacks an output that was requested")
    if not np.array_equal(answer.code, np.packbits(answer.embedding > 0, axis=1)):
        raise EmbeddingError("the server's codes are not the signs of its embeddings")
    return Answers(
        answer.embedding,
        answer.code,
        answer.version,
        answer.engine,
        statistics.median(waits) * 1e3,
        len(images) / seconds,
    )


def similarity(answers: Answers, gallery: Gallery, comparison: Comparison) -> NDArray[np.float32]:
    """Scores [shots, catalogue] by one comparison."""
    roles = np.array([picture.role for picture in gallery.pictures])
    rows = answers.embedding
    return scores(rows[roles == SHOT], rows[roles == CATALOGUE], comparison)


def report(answers: Answers, gallery: Gallery) -> None:
    """Print recall by float, asymmetric score and code, with intervals over products."""
    shots, catalogue = gallery.role(SHOT), gallery.role(CATALOGUE)
    products = [shot.product for shot in shots]
    relevant = relevance(shots, catalogue)
    dim = answers.embedding.shape[1]
    stored = {"float": 4 * dim, "asymmetric": dim // 8, "code": dim // 8}
    hits = {
        name: {k: recall_at(similarity(answers, gallery, name), relevant, k) for k in (1, 5)}
        for name in COMPARISONS
    }
    table = Table(
        title=f"{len(shots)} simulated shots of {len(catalogue)} products, "
        f"searched in {len(catalogue)} catalogue pictures",
        box=SIMPLE_HEAD,
    )
    table.add_column("scores", no_wrap=True)
    for column in ("R@1 %", "R@5 %", "R@1, change", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in COMPARISONS:
        one, five = (bootstrap(100 * hits[name][k], products) for k in (1, 5))
        lost = bootstrap(100 * (hits[name][1] - hits["float"][1]), products)
        table.add_row(
            name,
            f"{one.mean:.1f} [{one.low:.0f}, {one.high:.0f}]",
            f"{five.mean:.1f} [{five.low:.0f}, {five.high:.0f}]",
            "" if name == "float" else f"{lost.mean:+.1f} [{lost.low:+.1f}, {lost.high:+.1f}]",
            f"{stored[name]:,}",
        )
    console.print(table)
    console.print(
        "95 % intervals by bootstrap over products; change: paired, against float\n"
        f"embedder {answers.version}, engine {answers.engine}\n"
        f"one image: p50 {answers.latency_ms:.1f} ms; in requests of 16: "
        f"{answers.images_per_second:.0f} images/s, client on the same machine\n"
        "every code equals packbits(embedding > 0)",
        highlight=False,
    )


def sheet(answers: Answers, gallery: Gallery) -> Image.Image:
    """Evenly spaced queries, hits and misses alike, with the best five by float and by code."""
    shots, catalogue = gallery.role(SHOT), gallery.role(CATALOGUE)
    by_float = similarity(answers, gallery, "float")
    by_code = similarity(answers, gallery, "code")
    chosen = np.linspace(0, len(shots) - 1, min(SHEET_ROWS, len(shots))).astype(int)
    rows = [
        _contact_sheet.SheetRow(
            shots[index].path,
            shots[index].name,
            [
                _hits(shots[index], catalogue, by_float[index], "{:.2f}"),
                _hits(shots[index], catalogue, by_code[index], "{:.0f} bits"),
            ],
        )
        for index in chosen
    ]
    return _contact_sheet.draw(
        "Products found from a shot",
        f"embedder {answers.version}, engine {answers.engine}; right answers are framed",
        ["nearest by float embedding (cosine)", "nearest by packed code (Hamming distance)"],
        rows,
    )


def _hits(
    shot: Picture, catalogue: tuple[Picture, ...], row: NDArray[np.float32], form: str
) -> list[_contact_sheet.Tile]:
    best = np.argsort(-row, kind="stable")[:SHEET_TOP]
    return [
        _contact_sheet.Tile(
            catalogue[index].path,
            f"{form.format(abs(row[index]))}  {catalogue[index].name}",
            catalogue[index].product == shot.product,
        )
        for index in best
    ]
