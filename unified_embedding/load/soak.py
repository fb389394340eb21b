"""`make soak`: the same load for ten minutes; does the server grow, or get slower?

HOST=127.0.0.1:8001 make soak
"""

import asyncio
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import Progress

from unified_embedding.checkout import ROOT
from unified_embedding.errors import EmbeddingError
from unified_embedding.load.served import (
    RESULTS,
    Served,
    console,
    fail,
    pictures,
    served,
)
from unified_embedding.measure.cost import costed_loop
from unified_embedding.measure.files import write_csv, write_json, write_text
from unified_embedding.measure.generator import closed_loop
from unified_embedding.measure.plots import Axis, Series, line_chart
from unified_embedding.measure.provenance import provenance
from unified_embedding.measure.requests import client_of, embed_request
from unified_embedding.serving.local_server import end_in_order

CALLERS: Final = 32
WARM_UP_S: Final = 5.0
STRETCHES: Final = 60


@dataclass(frozen=True)
class Stretch:
    """A sixtieth of the run.

    Attributes:
        minutes: since its start, at the end of the stretch.
        images_per_s: answered.
        p50_ms, p99_ms: latency of the closed loop.
        cpu_ms: CPU time of the server's processes for one picture; None when they are elsewhere.
        memory_mb: what they hold at the end; None likewise.
    """

    minutes: float
    images_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float | None
    memory_mb: float | None


def main(
    host: Annotated[str, typer.Option(envvar="HOST", help="gRPC address of the server")] = "",
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", min=1, help="seconds of the run")
    ] = 600,
    out: Annotated[Path, typer.Option(help="where the result is written")] = RESULTS / "soak",
) -> None:
    """Run, and write soak.json, soak.csv and memory.svg."""
    console.print(f"{CALLERS} callers for {seconds / 60:.0f} minutes")
    try:
        with served(host) as server:
            found = asyncio.run(soak(server, seconds))
            record = {
                "callers": CALLERS,
                "seconds": seconds,
                "stretches": [asdict(one) for one in found],
                "provenance": provenance(ROOT, server.info, 0),
            }
    except EmbeddingError as error:
        fail(error)
    rows = [list(asdict(one).values()) for one in found]
    write_csv(out / "soak.csv", list(asdict(found[0])), rows)
    write_text(out / "memory.svg", plot(found))
    write_json(out / "soak.json", record)
    console.print(f"{summary(record)}\nwritten: {out}/soak.json, {out}/soak.csv, {out}/memory.svg")


async def soak(server: Served, seconds: float) -> list[Stretch]:
    """The load in stretches. Raises EmbeddingError when a request fails."""
    found = []
    async with client_of(server.url, connection=server.connection) as client:
        request = embed_request(client, pictures())
        await closed_loop(request, CALLERS, WARM_UP_S)
        start = time.perf_counter()
        with Progress(console=console, transient=True) as progress:
            for _ in progress.track(range(STRETCHES), description="soak"):
                part = await costed_loop(server.tree, request, CALLERS, seconds / STRETCHES)
                recorder = part.recorder
                if recorder.failed:
                    raise EmbeddingError(
                        f"a request failed: {next(iter(recorder.examples.values()))}"
                    )
                found.append(
                    Stretch(
                        minutes=(time.perf_counter() - start) / 60,
                        images_per_s=part.images_per_s,
                        p50_ms=recorder.latencies.percentile_ms(50),
                        p99_ms=recorder.latencies.percentile_ms(99),
                        cpu_ms=part.cpu_ms,
                        memory_mb=part.memory_mb,
                    )
                )
    return found


def summary(record: dict[str, Any]) -> str:
    """The first and the last tenth of the run, in a sentence."""
    stretches = record["stretches"]
    tenth = max(1, len(stretches) // 10)

    def mean(part: list[dict[str, Any]], name: str) -> float | None:
        values = [one[name] for one in part if one[name] is not None]
        return sum(values) / len(values) if values else None

    words = []
    for name, unit in (("memory_mb", "MB"), ("cpu_ms", "CPU-ms an image"), ("images_per_s", "/s")):
        first, last = mean(stretches[:tenth], name), mean(stretches[-tenth:], name)
        if first is not None and last is not None:
            words.append(f"{first:.1f} -> {last:.1f} {unit}")
    return f"first and last tenth of {record['seconds'] / 60:.0f} minutes: {', '.join(words)}"


def plot(found: list[Stretch]) -> str:
    """Memory over time; without the server's processes, the latency."""
    if found[0].memory_mb is None:
        points = [(one.minutes, one.p50_ms) for one in found]
        return line_chart("Latency", Axis("minutes"), Axis("ms"), [Series("p50", points)])
    memory = [(one.minutes, one.memory_mb or 0.0) for one in found]
    title = f"Memory of the server's processes, {CALLERS} callers"
    return line_chart(title, Axis("minutes"), Axis("MB"), [Series("PSS", memory)])


def program() -> None:
    """Parse the command line and run."""
    end_in_order()
    typer.run(main)


if __name__ == "__main__":
    program()
