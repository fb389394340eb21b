"""How fast a back-fill is, and what it does to online requests at a third of capacity.

    python bench/backfill_bench.py [--seconds 20] [--pictures 2000]

Starts the installed engine on this machine. First a back-fill against the client alone, with as
many pictures and requests of 16 in flight. Then the server's capacity with single-picture requests
in a closed loop, and Poisson arrivals at a third of it, latency counted from the due time: alone,
and beside back-fills of different size. Server and clients share the cores, which is the worst
case.
"""

import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.client import EmbedderClient, Retry
from unified_embedding.errors import ClientError
from unified_embedding.gallery import SHOT, Gallery
from unified_embedding.load.backfills import SHARD, backfilled, corpus, program
from unified_embedding.measure.files import write_json
from unified_embedding.serving.local_server import child, end_in_order, running

CONCURRENCY: Final = 32
IN_FLIGHT: Final = 128
# Of the back-fill and of the client alone, where their speed is compared.
BATCH, TOGETHER = 16, 4

console = Console()


@dataclass
class OnlineRow:
    """Online requests beside one back-fill.

    Attributes:
        case: what ran beside them.
        offered: online requests per second that were due.
        p50_ms, p99_ms: latency from the due time, milliseconds.
        failed: online requests without an answer.
        backfilled: pictures per second that the back-fill finished meanwhile.
    """

    case: str
    offered: float
    p50_ms: float
    p99_ms: float
    failed: int
    backfilled: float


@dataclass
class Speed:
    """A back-fill beside the client alone.

    Attributes:
        pictures: how many each of them embedded.
        client: pictures per second of the client: requests of `BATCH`, `TOGETHER` in flight;
            mean of a run before the back-fill and one after it.
        backfill: pictures per second of the back-fill, from its first shard to the end.
        ratio: back-fill over client.
        start: seconds of the back-fill beside that: its start, the search, its end.
    """

    pictures: int
    client: float
    backfill: float
    ratio: float
    start: float


def main(
    seconds: Annotated[float, typer.Option(min=1, help="seconds of each measurement")] = 20,
    count: Annotated[
        int, typer.Option("--pictures", min=BATCH, help="of the back-fill whose speed is measured")
    ] = 2000,
    repository: Annotated[Path, typer.Option(help="Triton's model repository")] = (
        ROOT / "model_repository"
    ),
    seed: Annotated[int, typer.Option(help="seed of the arrivals")] = 0,
    out: Annotated[Path, typer.Option(help="where the report is written")] = Path("results"),
) -> None:
    """Measure; takes about three minutes."""
    pictures = [shot.path.read_bytes() for shot in Gallery.load(ROOT / "demo").role(SHOT)]
    with (
        running(repository) as server,
        tempfile.TemporaryDirectory() as folder,
        EmbedderClient(server.grpc_url, max_inflight=IN_FLIGHT, retry=Retry(1)) as client,
    ):
        info = client.info()
        fast = speed(client, pictures, count, server.grpc_url, Path(folder))
        console.print(
            f"back-fill of {count:,} pictures: {fast.backfill:.0f}/s, {fast.ratio:.2f} of the "
            f"client's {fast.client:.0f}/s with {TOGETHER} requests of {BATCH} in flight; "
            f"{fast.start:.1f} s to start and end"
        )
        rate = capacity(client, pictures, seconds / 2)
        console.print(
            f"engine {info.engine}: capacity {rate:.0f} single-picture requests/s at "
            f"concurrency {CONCURRENCY}"
        )
        third = ["--max-rate", str(round(rate / 3))]
        cases = {
            "alone": None,
            "back-fill as it comes": [],
            "the same, 4 pictures a request": ["--batch", "4"],
            "the same, at a third of capacity": ["--batch", "4", *third],
            "back-fill, 8 requests in flight": ["--max-inflight", "8"],
        }
        rows: list[OnlineRow] = []
        source = corpus(Path(folder) / "long.parquet", pictures, round(3 * rate * seconds))
        for name, options in cases.items():
            console.print(f"{name} ...")
            place = Path(folder) / str(len(rows))
            with backfill(source, place, server.grpc_url, options):
                before, began = finished(place), time.monotonic()
                latencies, failed = online(client, pictures, rate / 3, seconds, seed)
                done = (finished(place) - before) / (time.monotonic() - began)
            p50, p99 = np.quantile(latencies, (0.5, 0.99)) * 1e3
            rows.append(OnlineRow(name, rate / 3, float(p50), float(p99), failed, done))
    report = {
        "engine": info.engine,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "seconds": seconds,
        "seed": seed,
        "speed": asdict(fast),
        "capacity": rate,
        "rows": [asdict(row) for row in rows],
    }
    console.print(table(rows))
    write_json(out / "backfill-bench.json", report)
    console.print(f"written: {out / 'backfill-bench.json'}")


def speed(
    client: EmbedderClient, pictures: Sequence[bytes], count: int, url: str, folder: Path
) -> Speed:
    """A back-fill of `count` pictures between two runs of the client over the same ones."""
    batches = [
        [pictures[row % len(pictures)] for row in range(first, min(first + BATCH, count))]
        for first in range(0, count, BATCH)
    ]
    client.embed(batches[0])
    client_s = 0.0
    for turn in range(2):
        began = time.monotonic()
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(client.embed, batches))
        client_s += (time.monotonic() - began) / 2
        if not turn:
            source, out = corpus(folder / "short.parquet", pictures, count), folder / "speed"
            began = time.monotonic()
            backfill_s = backfilled(source, out, [url], TOGETHER)
            whole_s = time.monotonic() - began
    return Speed(
        count, count / client_s, count / backfill_s, client_s / backfill_s, whole_s - backfill_s
    )


def capacity(client: EmbedderClient, pictures: Sequence[bytes], seconds: float) -> float:
    """Requests per second of a closed loop."""
    client.embed(list(pictures[:16]))
    end = time.monotonic() + seconds

    def user(number: int) -> int:
        count = 0
        while time.monotonic() < end:
            client.embed([pictures[(number + count) % len(pictures)]])
            count += 1
        return count

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return sum(pool.map(user, range(CONCURRENCY))) / seconds


def online(
    client: EmbedderClient, pictures: Sequence[bytes], rate: float, seconds: float, seed: int
) -> tuple[list[float], int]:
    """Latencies in seconds of Poisson arrivals, from the due time; and how many failed."""
    arrivals = random.Random(seed)
    latencies: list[float] = []
    failed = 0
    lock = threading.Lock()

    def call(due: float, picture: bytes) -> None:
        nonlocal failed
        try:
            client.embed([picture], timeout=10)
        except ClientError:
            with lock:
                failed += 1
        with lock:
            latencies.append(time.monotonic() - due)

    start = due = time.monotonic()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for number in range(10**9):
            due += arrivals.expovariate(rate)
            if due > start + seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            pool.submit(call, due, pictures[number % len(pictures)])
    return latencies, failed


@contextmanager
def backfill(source: Path, out: Path, url: str, options: list[str] | None) -> Iterator[None]:
    """A back-fill that is under way; killed at the end, as its corpus is of no use."""
    if options is None:
        yield
        return
    command = program(source, out, [url], "--shard-size", str(SHARD), *options)
    with out.with_suffix(".log").open("w+") as log, child(command, stderr=log) as run:
        while finished(out) < 2 * SHARD:
            if run.poll() is not None:
                log.seek(0)
                raise SystemExit(f"the back-fill ended early: {log.read()}")
            time.sleep(0.1)
        yield


def finished(out: Path) -> int:
    """Pictures in finished shards."""
    return SHARD * len(list(out.glob("*/manifest/*.json")))


def table(rows: list[OnlineRow]) -> Table:
    """The rows for people."""
    drawn = Table(title="online requests at a third of capacity")
    drawn.add_column("beside them")
    for name in ("due/s", "p50 ms", "p99 ms", "failed", "back-fill/s"):
        drawn.add_column(name, justify="right")
    for row in rows:
        drawn.add_row(
            row.case,
            f"{row.offered:.0f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            str(row.failed),
            f"{row.backfilled:.0f}",
        )
    return drawn


if __name__ == "__main__":
    end_in_order()
    typer.run(main)
