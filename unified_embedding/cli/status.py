"""Is the server up, what does it serve, and how fast is one picture?

    python clients/status.py [--json]

Everything shown comes from the server. Exit code 0 only if real pictures were answered, by every
process of each model: where nobody looks after the server (NVIDIA's image), one whose model
process died still calls itself ready, and answers what the others take.
"""

import dataclasses
import io
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from unified_embedding import pack
from unified_embedding.cli.options import ModelName, Url, connecting, read_picture
from unified_embedding.client import (
    DEFAULT_URL,
    Connection,
    Embedded,
    EmbedderClient,
    Retry,
    ServerInfo,
    StageStatistics,
)
from unified_embedding.errors import ClientError, Overloaded, ServerError

# Calls at once, more than a model has processes as delivered: one of them meets a dead one. One
# after another, every fourth call did.
AT_ONCE: Final = 8


@dataclass(frozen=True)
class Status:
    """A server that answered.

    Attributes:
        url: its gRPC address.
        server: what it says about itself.
        first_ms: latency of the first picture, milliseconds.
        median_ms: median latency of the pictures after it, one at a time.
        pictures: how many pictures were timed, after those.
        stages: what each model did while they were answered (other callers' work included).
    """

    url: str
    server: ServerInfo
    first_ms: float
    median_ms: float
    pictures: int
    stages: dict[str, StageStatistics]


@connecting
def main(
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    image: Annotated[
        Path | None, typer.Option(help="picture to send; by default one of 640 x 480 is made")
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=1, help="how many calls to time, after a first one")
    ] = 10,
    as_probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="for an orchestrator: all calls at once, print nothing, and take a server for up "
            "that refuses because it has too much to do",
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.001, help="seconds per call")] = 10.0,
    model_name: ModelName = "",
    *,
    connection: Connection,
) -> None:
    """Ask a server what it serves, send it a picture, and show the times of each stage."""
    try:
        data = read_picture(image) if image else example_picture()
        once = Retry(attempts=1)
        options = connection.options()
        with EmbedderClient(
            url, timeout=timeout, retry=once, model=model_name, **options
        ) as client:
            if as_probe:
                ask_at_once(client, data, pictures)
                return
            status = probe(client, data, pictures)
    except (ClientError, ValueError, OSError) as error:
        if as_json:
            print(json.dumps({"up": False, "url": url, "error": str(error)}))
        Console(stderr=True).print(f"down: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    if as_json:
        print(json.dumps(as_record(status), indent=2))
    else:
        show(status, Console())


def probe(client: EmbedderClient, picture: bytes, pictures: int) -> Status:
    """Send one picture, alone, then to every process at once, then again and again, timed.

    Raises:
        ClientError: it did not answer, or its code is not the sign of its embedding.
    """
    server = client.info()
    first_ms = timed(client, picture)
    if refused := ask_at_once(client, picture, AT_ONCE):
        raise refused[0]
    # After the first picture, whose time is spent on things that happen once.
    before = client.statistics()
    milliseconds = [timed(client, picture) for _ in range(pictures)]
    after = client.statistics()
    ours = client.names.models
    order = [name for name in ours if name in after] + sorted(set(after) - set(ours))
    stages = {name: after[name] - before.get(name, StageStatistics()) for name in order}
    return Status(
        url=client.url,
        server=server,
        first_ms=first_ms,
        median_ms=statistics.median(milliseconds),
        pictures=pictures,
        stages={name: stage for name, stage in stages.items() if stage.requests},
    )


def ask_at_once(client: EmbedderClient, picture: bytes, calls: int) -> list[Overloaded]:
    """Send the picture in so many calls at once; the refusals for want of time.

    More calls than a model has processes meet each of them.

    Raises:
        ClientError: another call failed, or its code is not the sign of its embedding.
    """
    with ThreadPoolExecutor(calls) as callers:
        begun = [callers.submit(timed, client, picture) for _ in range(calls)]
    refused = []
    for call in begun:
        try:
            call.result()
        except Overloaded as error:
            refused.append(error)
    return refused


def timed(client: EmbedderClient, picture: bytes) -> float:
    """Milliseconds of one checked call. Raises as `probe`."""
    began = time.perf_counter()
    answer = client.embed([picture])
    milliseconds = 1000 * (time.perf_counter() - began)
    check_code(answer)
    return milliseconds


def check_code(answer: Embedded) -> None:
    """Raise ServerError unless the code is the packed sign of the embedding."""
    embedding, code = answer.embedding, answer.code
    if embedding is None or code is None or not np.array_equal(pack(embedding), code):
        raise ServerError("the server's code is not the packed sign of its embedding")


def example_picture() -> bytes:
    """A JPEG of 640 x 480 pixels with smooth colours and some texture."""
    rows, columns = np.mgrid[0:480, 0:640]
    texture = np.random.default_rng(0).integers(0, 24, (480, 640))
    planes = [rows * 230 // 480 + texture, columns * 230 // 640 + texture, (rows + columns) // 5]
    file = io.BytesIO()
    Image.fromarray(np.stack(planes, axis=2).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def as_record(status: Status) -> dict[str, Any]:
    """The status as JSON values."""
    server = dataclasses.asdict(status.server)
    return {
        "up": True,
        "url": status.url,
        **server,
        "code_bytes": status.server.code_bytes,
        "pictures": status.pictures,
        "first_ms": round(status.first_ms, 3),
        "median_ms": round(status.median_ms, 3),
        "stages": {
            name: {"requests": stage.requests, "mean_batch": stage.mean_batch, **stage_ms(stage)}
            for name, stage in status.stages.items()
        },
    }


def stage_ms(stage: StageStatistics) -> dict[str, float]:
    """Mean milliseconds of one request in a stage, by what it waited for."""
    times = {
        "queue": stage.queue_ns,
        "input": stage.input_ns,
        "compute": stage.infer_ns,
        "output": stage.output_ns,
        "total": stage.total_ns,
    }
    return {f"{name}_ms": round(ns / stage.requests / 1e6, 3) for name, ns in times.items()}


def show(status: Status, console: Console) -> None:
    """Print the status for people."""
    server = status.server
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("server", f"[green]up[/green], Triton {server.triton} at {status.url}"),
        ("embedder", f"version {server.version}"),
        ("engine", server.engine),
        ("embedding", f"float32, D = {server.dim}"),
        ("code", f"{server.code_bytes} bytes"),
        (
            "input",
            f"{server.input_size} x {server.input_size}, up to "
            f"{server.max_batch_size} pictures a request",
        ),
        (
            "one picture",
            f"{status.median_ms:.1f} ms (median of {status.pictures}, "
            f"one at a time; the first took {status.first_ms:.1f} ms)",
        ),
    ):
        facts.add_row(f"[bold]{name}[/bold]", value)
    console.print(facts)
    stages = Table(
        title="\nmean milliseconds per call", title_justify="left", box=SIMPLE, pad_edge=False
    )
    stages.add_column("model", no_wrap=True)
    for name in ("calls", "batch", "queue", "input", "compute", "output", "total"):
        stages.add_column(name, justify="right")
    for name, stage in status.stages.items():
        times = (f"{value:.2f}" for value in stage_ms(stage).values())
        stages.add_row(name, str(stage.requests), f"{stage.mean_batch:.1f}", *times)
    console.print(stages)
