"""`make loadgen`: MLPerf LoadGen drives the server through our client, as a cross-check.

    HOST=127.0.0.1:8001 SLO_P99_MS=100 make loadgen

Three scenarios: SingleStream (one after the other), Offline (everything at once) and Server
(Poisson arrivals, latency from the scheduled moment). The highest Server rate that holds the
objective stands beside the one that our own load generator finds in the same run. LoadGen is
MLCommons' program; these are not MLPerf results.
"""

import asyncio
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.client import EmbedderClient, Retry
from unified_embedding.errors import EmbeddingError
from unified_embedding.load.capacity import closed_maximum, patience_s, steps
from unified_embedding.load.served import (
    RESULTS,
    Served,
    console,
    fail,
    pictures,
    served,
)
from unified_embedding.measure.files import write_json
from unified_embedding.measure.generator import Request
from unified_embedding.measure.poisson_limit import WARM_UP_S, Trial, highest_rate, poisson_trial
from unified_embedding.measure.provenance import provenance
from unified_embedding.measure.requests import client_of, embed_request
from unified_embedding.serving.local_server import end_in_order

try:
    import mlperf_loadgen as lg
except ImportError:
    fail("mlcommons_loadgen is not installed; make loadgen installs it (extra `peers`)")

# Requests on their way at once; each waits in a thread of its own.
THREADS: Final = 256
# Nothing may fail: LoadGen knows no failed query, so one ends the program.
TIMEOUT_S: Final = 60.0
AGREEMENT: Final = 0.2
# Of a search, about: five to seven rates, as the whole has to end in time.
TRIALS: Final = 14
_FIGURE: Final = re.compile(r"^(.+?)\s*: (.+)$", re.MULTILINE)


class SystemUnderTest:
    """LoadGen's queries as requests through EmbedderClient."""

    def __init__(self, server: Served) -> None:
        self._client = EmbedderClient(
            server.url,
            timeout=TIMEOUT_S,
            max_inflight=THREADS,
            retry=Retry(attempts=1),
            send_deadline=False,
            **server.connection.options(),
        )
        self._batch = server.info.max_batch_size
        self._pictures = pictures()
        self._pool = ThreadPoolExecutor(THREADS)
        self._errors: list[EmbeddingError] = []
        count = len(self._pictures)
        self._sut = lg.ConstructSUT(self._issue, lambda: None)
        self._samples = lg.ConstructQSL(count, count, lambda chosen: None, lambda chosen: None)

    def run(self, scenario: str, seconds: float, **settings: Any) -> dict[str, str]:
        """One test; returns the figures of LoadGen's own summary by name.

        Raises:
            EmbeddingError: a request failed.
        """
        wanted = lg.TestSettings()
        wanted.scenario = getattr(lg.TestScenario, scenario)
        wanted.mode = lg.TestMode.PerformanceOnly
        wanted.min_duration_ms = round(1000 * seconds)
        wanted.min_query_count = 1
        for name, value in settings.items():
            setattr(wanted, name, value)
        with tempfile.TemporaryDirectory() as folder:
            log = lg.LogSettings()
            log.log_output.outdir = folder
            log.log_output.copy_summary_to_stdout = False
            log.enable_trace = False
            lg.StartTestWithLogSettings(self._sut, self._samples, wanted, log)
            summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
        if self._errors:
            raise self._errors[0]
        return {name.strip(): value.strip() for name, value in _FIGURE.findall(summary)}

    def close(self) -> None:
        """Give everything back."""
        self._pool.shutdown()
        self._client.close()
        lg.DestroyQSL(self._samples)
        lg.DestroySUT(self._sut)

    def _issue(self, queries: Any) -> None:
        # Offline hands over all samples at once: they travel in full requests.
        for start in range(0, len(queries), self._batch):
            self._pool.submit(self._answer, list(queries[start : start + self._batch]))

    def _answer(self, queries: list[Any]) -> None:
        try:
            self._client.embed([self._pictures[query.index] for query in queries])
        except EmbeddingError as error:
            self._errors.append(error)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0) for query in queries])


def main(
    host: Annotated[str, typer.Option(envvar="HOST", help="gRPC address of the server")] = "",
    slo_p99_ms: Annotated[
        float, typer.Option(envvar="SLO_P99_MS", min=1, help="limit of p99 in milliseconds")
    ] = 100,
    seconds: Annotated[float, typer.Option(envvar="DURATION", min=1, help="seconds of a run")] = 8,
    seed: Annotated[int, typer.Option(help="seed of the arrivals")] = 0,
    full: Annotated[bool, typer.Option(envvar="FULL", help="runs of one minute each")] = False,
    out: Annotated[Path, typer.Option(help="where the result is written")] = RESULTS / "loadgen",
) -> None:
    """Run the three scenarios, and our own search beside LoadGen's Server."""
    seconds = 60 if full else seconds
    console.print(f"LoadGen: about {(4 + 2 * TRIALS) * (seconds + WARM_UP_S) / 60:.0f} minutes")
    try:
        with served(host) as server:
            sut = SystemUnderTest(server)
            try:
                result = asyncio.run(measure(server, sut, slo_p99_ms, seconds, seed))
            finally:
                sut.close()
    except EmbeddingError as error:
        fail(error)
    write_json(out / "loadgen.json", result)
    show(result)
    console.print(f"written: {out}/loadgen.json")


async def measure(
    server: Served, sut: SystemUnderTest, slo_p99_ms: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Everything, as JSON values."""
    async with client_of(server.url, patience_s(slo_p99_ms), server.connection) as client:
        request = embed_request(client, pictures())
        with steps("closed loop"):
            _, maximum = await closed_maximum(request, seconds)
        with steps("SingleStream"):
            single = await asyncio.to_thread(sut.run, "SingleStream", seconds)
        with steps("Offline"):
            offline = await asyncio.to_thread(
                # Full requests are faster than the single ones of the closed loop, and a run that
                # ends before its time is no valid one.
                sut.run,
                "Offline",
                seconds,
                offline_expected_qps=1.5 * maximum,
            )
        with steps("Server, LoadGen") as step:

            async def trial(rate: float, number: int) -> Trial:
                found = await asyncio.to_thread(
                    server_run, sut, rate, seconds, slo_p99_ms, seed + number
                )
                step(f"{rate:.0f}/s: p99 {found.p99_ms:.1f} ms")
                return found

            theirs, their_trials = await highest_rate(trial, upper=1.2 * maximum, most=TRIALS)
        with steps("the same by our own generator") as step:
            ours, our_trials = await search(request, maximum, seconds, slo_p99_ms, seed, step)
    return {
        "slo_p99_ms": slo_p99_ms,
        "SingleStream": single,
        "Offline": offline,
        "Server": {"highest_rate": theirs, "trials": [asdict(one) for one in their_trials]},
        "ours": {"highest_rate": ours, "trials": [asdict(one) for one in our_trials]},
        "closed_loop_per_s": maximum,
        "ratio": theirs / ours if ours else None,
        "provenance": provenance(ROOT, server.info, seed, trial_seconds=seconds),
    }


async def search(
    request: Request, maximum: float, seconds: float, slo_p99_ms: float, seed: int, step: Any
) -> tuple[float, list[Trial]]:
    """The highest rate that holds, reporting every trial."""

    async def trial(rate: float, number: int) -> Trial:
        found = await poisson_trial(request, rate, seconds, slo_p99_ms, seed + number)
        verdict = "held" if found.held else "not held"
        step(f"{rate:.0f}/s: {100 * found.share:.2f} % in time, {verdict}")
        return found

    return await highest_rate(trial, upper=1.2 * maximum, most=TRIALS)


def server_run(
    sut: SystemUnderTest, rate: float, seconds: float, slo_p99_ms: float, seed: int
) -> Trial:
    """LoadGen's Server scenario at one rate."""
    figures = sut.run(
        "Server",
        seconds,
        server_target_qps=rate,
        server_target_latency_ns=round(slo_p99_ms * 1e6),
        server_target_latency_percentile=0.99,
        schedule_rng_seed=seed,
    )

    def ms(name: str) -> float:
        return float(figures[f"{name} (ns)"]) / 1e6

    p99 = ms("99.00 percentile latency")
    return Trial(
        rate=rate,
        # LoadGen tells whether its percentile met the objective, not by how much it was met.
        share=1.0 if p99 <= slo_p99_ms else 0.0,
        p50_ms=ms("50.00 percentile latency"),
        p99_ms=p99,
        mean_ms=ms("Mean latency"),
        answered=float(figures["Completed samples per second"]),
    )


def show(result: dict[str, Any]) -> None:
    """Print the result for people."""
    found = Table(title="MLPerf LoadGen through EmbedderClient", title_justify="left")
    found.add_column("scenario")
    found.add_column("figure", justify="right")
    single, offline = result["SingleStream"], result["Offline"]
    p90 = float(single["90.00 percentile latency (ns)"]) / 1e6
    found.add_row("SingleStream, p90", f"{p90:.1f} ms")
    found.add_row("Offline, full requests", f"{float(offline['Samples per second']):.1f} images/s")
    limit = f"p99 <= {result['slo_p99_ms']:g} ms"
    found.add_row(f"Server, {limit}", f"{result['Server']['highest_rate']:.0f}/s")
    found.add_row(f"our generator, {limit}", f"{result['ours']['highest_rate']:.0f}/s")
    console.print(found)
    ratio = result["ratio"]
    if ratio is None:
        console.print("our generator found no rate that holds")
    elif abs(ratio - 1) <= AGREEMENT:
        console.print(f"they agree: {ratio:.2f}")
    else:
        console.print(
            f"[yellow]they differ: {ratio:.2f}[/]. LoadGen's queries wait in {THREADS} threads of "
            "one Python process, which takes CPU time from a server on the same machine"
        )


if __name__ == "__main__":
    end_in_order()
    typer.run(main)
