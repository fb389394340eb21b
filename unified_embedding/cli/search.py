"""Find pictures like one, or like a part of one.

    python clients/search.py photo.jpg
    python clients/search.py photo.jpg --crop 0.1,0.2,0.6,0.9 --k 20 --sheet out/hits.png
    python clients/search.py photo.jpg --where "price < 20 and category == 'chair'"

The photo goes to the server, its code to the index. Exit code: 0, hits were printed; 2, not.
"""

import json
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from unified_embedding import Box
from unified_embedding.cli.options import Roots, Urls, connecting, errors, failing, read_picture
from unified_embedding.client import DEFAULT_URL, Connection, EmbedderClient, Retry
from unified_embedding.errors import EmbeddingError
from unified_embedding.image import decode, parse_crops
from unified_embedding.index import CodeIndex, EngineWarning, Hit, Matches, facts
from unified_embedding.index.following import open_index
from unified_embedding.index.matches import Rerank
from unified_embedding.search import contact_sheet
from unified_embedding.search.pictures import Pictures
from unified_embedding.search.searching import (
    DEFAULT_INDEX,
    embedder_for,
    measure_engine,
    pictures_of,
    title,
)

console = Console(highlight=False, markup=False, soft_wrap=True)


class Order(StrEnum):
    """What the hits are ordered by."""

    code = "code"
    asymmetric = "asymmetric"
    embedding = "embedding"


RERANK: Final[dict[Order, Rerank | None]] = {
    Order.code: None,
    Order.asymmetric: "asymmetric",
    Order.embedding: "embedding",
}


NAME: Final = 24  # characters of a name that are shown


@dataclass(frozen=True)
class Found:
    """Hits of one query and the time each step took, in milliseconds."""

    hits: list[Hit]
    embed_ms: float
    search_ms: float


@connecting
def main(
    image: Annotated[Path, typer.Argument(help="the picture to search with")],
    crop: Annotated[
        str, typer.Option(help="part of the picture: x0,y0,x1,y1 as fractions of it")
    ] = "",
    k: Annotated[int, typer.Option("--k", min=1, help="how many hits")] = 10,
    index: Annotated[
        Path,
        typer.Option(
            help="folder of the index, or an active.json that names it",
            envvar="UNIFIED_EMBEDDING_INDEX",
        ),
    ] = DEFAULT_INDEX,
    order: Annotated[
        Order,
        typer.Option(
            help="code: Hamming distance; asymmetric: float query against the nearest codes; "
            "embedding: against their stored embeddings"
        ),
    ] = Order.code,
    exact: Annotated[
        bool, typer.Option("--exact", help="compare every code, whatever the kind of the index")
    ] = False,
    where: Annotated[
        str | None,
        typer.Option(
            help="condition on metadata, such as \"price < 20 and category in ['chair', 'sofa']\"",
            show_default=False,
        ),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="write a contact sheet, .png")] = None,
    root: Roots = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    url: Urls = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="seconds per call")] = 30.0,
    *,
    connection: Connection,
) -> None:
    """Search an index with a picture."""
    with failing("search"):
        box = parse_crops(crop, 1)[0] if crop else None
        data = read_picture(image)
        retry = Retry(attempts=2)
        while True:
            opened = open_index(index)
            pictures, home = pictures_of(opened, root), opened.header
            opened.snapshot(where)  # A bad condition is told before anything is sent.
            version, urls = home.origin.version, url or [DEFAULT_URL]
            try:
                with embedder_for(version, urls, timeout, retry, connection) as client:
                    found = search(opened, client, data, box, k, order, exact, pictures, where)
                break
            except EmbeddingError:
                if open_index(index).header == home:  # No other one became active meanwhile.
                    raise
    if as_json:
        print(json.dumps(as_record(found), ensure_ascii=False, indent=2))
    else:
        show(found, opened, order)
    if sheet is not None:
        draw(found, opened, pictures, image, data, box, order, sheet)
        console.print(f"contact sheet: {sheet}")


def search(
    index: CodeIndex,
    client: EmbedderClient,
    data: bytes,
    crop: Box | None,
    k: int,
    order: Order,
    exact: bool,
    pictures: Pictures,
    where: str | None = None,
) -> Found:
    """Embed the picture on the server and search the index with the answer.

    `pictures` reads pictures of the index, to compare engines where the server runs another.

    Raises:
        ClientError: the server did not answer, or refused the picture.
        CodeIndexError: the index is of another version, or lacks what `order` needs.
    """
    server = client.info()
    measure_engine(index, client, server, pictures)
    outputs = ("code",) if order is Order.code else ("code", "embedding")
    began = time.perf_counter()
    answer = client.embed([data], crops=crop, outputs=outputs)
    embedded = time.perf_counter()
    if answer.code is None:
        raise EmbeddingError("the server left out the code that was asked for")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EngineWarning)
        matches: Matches = index.search(
            answer.code,
            answer.origin,
            k=k,
            embedding=answer.embedding,
            rerank=RERANK[order],
            exact=exact,
            where=where,
        )
    hits = matches.hits(0)
    searched = time.perf_counter()
    for warning in caught:
        errors.print(f"warning: {warning.message}", style="yellow")
    return Found(hits, 1e3 * (embedded - began), 1e3 * (searched - embedded))


def show(found: Found, index: CodeIndex, order: Order) -> None:
    """Print the hits for people, a line each; ids are last, so that none is cut or wrapped."""
    chance, ruled = index.chance(), order is not Order.code
    score = "" if order is Order.code else "  cosine"
    console.print(f"{'#':>3}  {'bits':>5}{score}  {'name':<{NAME}}  id")
    for place, hit in enumerate(found.hits, start=1):
        if chance and hit.distance >= chance and not ruled:
            ruled = True
            console.print(f"     from {chance} bits on, no nearer than chance", style="dim")
        score = "" if hit.score is None else f"  {hit.score:6.3f}"
        name = title(hit.id, facts(hit.metadata))
        name = name if len(name) <= NAME else name[: NAME - 3] + "..."
        console.print(f"{place:>3}  {hit.distance:>5}{score}  {name:<{NAME}}  {hit.id}")
    console.print(
        f"{len(index):,} codes of {index.header.dim} bits ({index.header.settings.kind}); "
        f"server {found.embed_ms:.1f} ms, search {found.search_ms:.2f} ms"
    )


def as_record(found: Found) -> dict[str, Any]:
    """The hits as JSON values."""
    hits = [
        {
            "id": hit.id,
            "distance": hit.distance,
            "score": hit.score,
            "metadata": facts(hit.metadata),
        }
        for hit in found.hits
    ]
    return {
        "hits": hits,
        "embed_ms": round(found.embed_ms, 3),
        "search_ms": round(found.search_ms, 3),
    }


def draw(
    found: Found,
    index: CodeIndex,
    pictures: Pictures,
    image: Path,
    data: bytes,
    crop: Box | None,
    order: Order,
    sheet: Path,
) -> None:
    """Write the query and its hits as one picture; hits without a readable picture are left out."""
    shown = []
    for hit in found.hits:
        path = pictures.path(hit.metadata)
        if path is not None:
            measure = f"{hit.distance} bits" if hit.score is None else f"{hit.score:.3f}"
            name = title(hit.id, facts(hit.metadata))
            shown.append(contact_sheet.Tile(path, f"{measure}  {name}", False))
    if not shown:
        errors.print(
            "search: no hit's picture can be read here, so there is no sheet; name their folders "
            "by --root",
            style="red",
        )
        sys.exit(2)
    with tempfile.TemporaryDirectory() as folder:
        query = Path(folder) / "query.png"
        decode(data, crop).save(query)
        drawn = contact_sheet.draw(
            f"Pictures like {image.name}",
            f"{len(index):,} codes, embedder {index.header.origin.version}",
            [f"nearest by {order.value}"],
            [contact_sheet.SheetRow(query, "query", [shown])],
        )
    sheet.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(sheet)
