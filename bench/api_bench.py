"""`make bench-api`: what the HTTP API costs beside gRPC, the same server behind both.

Rounds in turns: gRPC and the API (data URLs in, float vectors as base64 and codes out) with one
and 32 connections of one picture and 8 of 16, and LitServe with the same engine at one picture.
The ratios carry a 95 % interval over the paired rounds.
"""

import asyncio
import base64
import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.progress import Progress
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.errors import EmbeddingError, ServerError
from unified_embedding.load.served import REPOSITORY, RESULTS, console, fail, inference_precision
from unified_embedding.load.served import pictures as photographs
from unified_embedding.load.serving_systems import (
    Embedder,
    HttpPeer,
    LitServe,
    System,
    Triton,
)
from unified_embedding.load.targets import API_MORE_MS, API_RATE
from unified_embedding.measure.cost import costed_loop
from unified_embedding.measure.files import write_json
from unified_embedding.measure.generator import closed_loop
from unified_embedding.measure.paired import mean, ratio, told
from unified_embedding.measure.provenance import commit, machine
from unified_embedding.serving.local_server import end_in_order
from unified_embedding.spec import EmbedderSpec

LOADS: Final = ((1, 1), (32, 1), (8, 16))
"""Connections, and pictures of a request."""
WARM_UP_S: Final = 0.5


class Api(HttpPeer):
    """The API program in front of a server that runs already."""

    path = "/v1/embeddings"
    content_type = "application/json"
    most = 16

    def __init__(self, embedder: Embedder, log: Path, url: str) -> None:
        command = ["-m", "unified_embedding.cli", "api", "--server", url]
        super().__init__("HTTP API", embedder, log, command)

    def body(self, images: Sequence[bytes]) -> bytes:
        """Data URLs, for vectors as base64 and codes."""
        urls = ["data:image/jpeg;base64," + base64.b64encode(image).decode() for image in images]
        both = {"encoding_format": "base64", "embedding_type": ["float", "ubinary"]}
        return json.dumps({"input": urls, **both}).encode()

    def check(self, answer: bytes) -> None:
        """Vectors that decode to the embedder's width, as an SDK does."""
        for row in json.loads(answer)["data"]:
            if np.frombuffer(base64.b64decode(row["embedding"]), "<f4").shape != (
                self.embedder.dim,
            ):
                raise ServerError(f"{self.name} answered a vector of another width")


def main(
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", min=0.1, help="seconds of one measurement")
    ] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="measurements of each load")] = 8,
    repository: Annotated[Path, typer.Option(help="the repository to serve")] = REPOSITORY,
    out: Annotated[Path, typer.Option(help="where the result is written")] = RESULTS / "api",
) -> None:
    """Measure, print, and write api.json."""
    folder = repository / "embedder"
    spec = EmbedderSpec.load(folder / "1")
    embedder = Embedder(
        spec.name, spec.trunk, repository, inference_precision(folder), spec.dim, 100.0
    )
    try:
        with tempfile.TemporaryDirectory() as logs:
            found = asyncio.run(measure(embedder, seconds, rounds, Path(logs)))
    except EmbeddingError as error:
        fail(error)
    record = {
        "readings": [
            {"system": name, "connections": users, "images": per_request, "rounds": values}
            for (name, users, per_request), values in found.items()
        ],
        "seconds": seconds,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(ROOT),
        "machine": machine(),
    }
    write_json(out / "api.json", record)
    console.print(table(found))
    console.print(f"written: {out}/api.json")


Readings = dict[tuple[str, int, int], list[tuple[float, float]]]
"""(system, connections, pictures of a request) -> images/s and median milliseconds by round."""


async def measure(embedder: Embedder, seconds: float, rounds: int, logs: Path) -> Readings:
    """All loads in turns; the system that is not measured gets nothing to do."""
    ours = Triton("gRPC", embedder, logs / "triton.log")
    lit = LitServe(embedder, logs / "litserve.log", 1)
    images = photographs()
    found: Readings = {}
    with ExitStack() as stack, Progress(console=console, transient=True) as progress:
        await asyncio.to_thread(ours.start)
        stack.callback(ours.stop)
        api = Api(embedder, logs / "api.log", ours.url)
        for peer in (api, lit):
            await asyncio.to_thread(peer.start)
            stack.callback(peer.stop)
        lit.tree.pause()
        stack.callback(lit.tree.resume)
        turns: list[tuple[System, int, int]] = []
        for users, per_request in LOADS:
            turns += [(ours, users, per_request), (api, users, per_request)]
            turns += [(lit, users, per_request)] if per_request == 1 else []
        task = progress.add_task("in turns", total=rounds * len(turns))
        for number in range(rounds):
            for system, users, per_request in turns if number % 2 == 0 else reversed(turns):
                if system is lit:
                    lit.tree.resume()
                async with system.calling(images, per_request) as request:
                    await closed_loop(request, users, WARM_UP_S)
                    costed = await costed_loop(None, request, users, seconds)
                if system is lit:
                    lit.tree.pause()
                recorder = costed.recorder
                if recorder.failed or not recorder.images:
                    said = "; ".join(recorder.examples.values()) or "no answer"
                    raise ServerError(f"{system.name}, {users} connections: {said}")
                reading = (costed.images_per_s, recorder.latencies.percentile_ms(50))
                found.setdefault((system.name, users, per_request), []).append(reading)
                progress.advance(task)
    return found


def table(found: Readings) -> Table:
    """A row for each load: both sides, the ratio with its interval, and the verdict."""
    shown = Table("connections x pictures", "gRPC", "HTTP API", "LitServe", "API against gRPC", "")
    for users, per_request in LOADS:
        grpc, api = (found[name, users, per_request] for name in ("gRPC", "HTTP API"))
        lit = found.get(("LitServe, 1 worker", users, per_request))
        cells = [_cell(side) if side else "" for side in (grpc, api, lit)]
        if (users, per_request) in API_RATE:
            target, goal = API_RATE[users, per_request], "images/s"
            change = ratio([one[0] for one in api], [one[0] for one in grpc])
            seen = told(change)
        else:
            target, goal = API_MORE_MS, "p50, ms more"
            change = mean([a[1] - g[1] for a, g in zip(api, grpc, strict=True)])
            seen = f"{told(change, 1)} ms"
        shown.add_row(
            f"{users} x {per_request}", *cells, seen, f"{goal} {target}: {target.verdict(change)}"
        )
    return shown


def _cell(readings: Sequence[tuple[float, float]]) -> str:
    rate, p50 = (statistics.median(values) for values in zip(*readings, strict=True))
    return f"{rate:.0f}/s, p50 {p50:.1f} ms"


if __name__ == "__main__":
    end_in_order()
    typer.run(main)
