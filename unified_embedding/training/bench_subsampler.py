"""Full against sampled softmax: `python -m unified_embedding.training.bench_subsampler`.

One step is: loss of a batch of given embeddings, backward, update of the proxies, and waiting
until the update is written. There is no trunk, so nothing hides the sampled head's copies.
Every measurement runs in a process of its own, and its memory is the growth of that process's
peak over what it had before the head was made.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from unified_embedding.training.heads import FullHead, ProxyHead
from unified_embedding.training.sampled_head import SampledHead

Side = Literal["full", "sampled"]
_FLOAT = 4
_GB = 1e9


@dataclass(frozen=True)
class Problem:
    """One measurement.

    Attributes:
        side: "full" or "sampled".
        classes: M.
        dim: D.
        sampled: K.
        batch: labelled images per step.
        steps: timed steps, after one that is not timed.
        seed: draws embeddings, labels, proxies and samples.
    """

    side: Side
    classes: int
    dim: int
    sampled: int
    batch: int
    steps: int
    seed: int

    @property
    def device_bytes(self) -> int:
        """What a GPU would hold at least: proxies, momentum, gradient; logits, their gradient.

        The sampled head keeps momentum on the host.
        """
        if self.side == "full":
            return _FLOAT * (3 * self.classes * self.dim + 2 * self.batch * self.classes)
        return _FLOAT * (2 * self.sampled * self.dim + 2 * self.batch * self.sampled)

    @property
    def peak_bytes(self) -> int:
        """What this program holds at its peak on a machine without a GPU, about.

        The full softmax needs seven arrays of M x D: proxies, momentum, normalised proxies and
        what backward makes of them.
        """
        copies = 7 if self.side == "full" else 2
        logits = 2 * self.batch * (self.classes if self.side == "full" else self.sampled)
        return _FLOAT * (copies * self.classes * self.dim + logits)


@dataclass(frozen=True)
class Measured:
    """Result of one measurement.

    Attributes:
        seconds: median time of a step by the clock.
        cpu_seconds: median processor time of a step over all threads; less moved than the
            clock by what else the machine does.
        peak_bytes: growth of the process's peak resident memory.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(problem: Problem) -> Measured:
    """Run one problem in this process; memory is right only in a fresh one."""
    before = _peak()
    head = _head(problem)
    rng = np.random.default_rng(problem.seed)
    seconds, cpu_seconds = [], []
    for step in range(problem.steps + 1):
        labels = rng.integers(0, problem.classes, problem.batch)
        values = rng.standard_normal((problem.batch, problem.dim), dtype=np.float32)
        embedding = torch.from_numpy(values).requires_grad_()
        start, cpu_start = time.perf_counter(), time.process_time()
        head.begin(labels, step)
        head.loss(embedding, labels).backward()  # type: ignore[no-untyped-call]
        head.update(0.01)
        head.state()  # waits for the writer
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    head.close()
    return Measured(
        statistics.median(seconds[1:]), statistics.median(cpu_seconds[1:]), _peak() - before
    )


def _head(problem: Problem) -> ProxyHead:
    if problem.side == "full":
        return FullHead("bench", problem.classes, problem.dim, problem.seed)
    return SampledHead("bench", problem.classes, problem.dim, problem.sampled, problem.seed)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_own_process(problem: Problem) -> Measured:
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--one", json.dumps(asdict(problem))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{problem} failed:\n{done.stderr}")
    return Measured(**json.loads(done.stdout))


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable; this benchmark needs Linux")


def compare(
    classes: int, make: Callable[[Side], Problem], full: bool, console: Console
) -> list[str]:
    """One row of the table: both sides at M classes, or the sampled one alone."""
    sides: list[Side] = ["sampled", "full"] if full else ["sampled"]
    found: dict[Side, Measured | None] = {"full": None, "sampled": None}
    for side in sides:
        problem = make(side)
        if problem.peak_bytes > 0.9 * _available():
            console.print(
                f"{classes:,} classes, {side}: not run, it needs {problem.peak_bytes / _GB:.1f} GB "
                f"of memory and {_available() / _GB:.1f} GB are free"
            )
            continue
        with console.status(f"{classes:,} classes, {side} softmax"):
            found[side] = _in_own_process(problem)
    return _row(classes, make, found)


def _row(
    classes: int, make: Callable[[Side], Problem], found: dict[Side, Measured | None]
) -> list[str]:
    full, sampled = found["full"], found["sampled"]
    device = make("full").device_bytes / make("sampled").device_bytes
    return [
        f"{classes:,}",
        f"{full.seconds * 1e3:,.0f}" if full else "not run",
        f"{sampled.seconds * 1e3:,.0f}" if sampled else "not run",
        f"{full.seconds / sampled.seconds:.0f}" if full and sampled else "-",
        f"{full.cpu_seconds * 1e3:,.0f}" if full else "-",
        f"{sampled.cpu_seconds * 1e3:,.0f}" if sampled else "-",
        f"{full.cpu_seconds / sampled.cpu_seconds:.0f}" if full and sampled else "-",
        f"{full.peak_bytes / _GB:.2f}"
        if full
        else f"{make('full').peak_bytes / _GB:.0f} (computed)",
        f"{sampled.peak_bytes / _GB:.2f}" if sampled else "not run",
        f"{full.peak_bytes / sampled.peak_bytes:.2f}" if full and sampled else "-",
        f"{make('full').device_bytes / _GB:.2f}",
        f"{make('sampled').device_bytes / _GB:.3f}",
        f"{device:,.0f}",
    ]


def main(
    classes: Annotated[
        list[int] | None, typer.Option(help="Numbers of classes, both sides measured.")
    ] = None,
    alone: Annotated[
        list[int] | None, typer.Option(help="Numbers of classes, the subsampler alone.")
    ] = None,
    dim: Annotated[int, typer.Option(min=1)] = 2048,
    sampled: Annotated[int, typer.Option(min=1, help="Classes sampled per step (K).")] = 2048,
    batch: Annotated[int, typer.Option(min=1, help="Labelled images per step.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps; one more warms up.")] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=0, help="torch threads; 0: its default.")] = 0,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure time and memory of both heads and print the ratios."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes that measure
    if one is not None:
        print(json.dumps(asdict(measure(Problem(**json.loads(one))))))
        return
    console = Console(width=150)
    console.print(
        f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS "
        f"{os.environ.get('OMP_NUM_THREADS', 'unset')}, no GPU used; D = {dim}, K = {sampled}, "
        f"batch {batch}, median of {steps} steps, seed {seed}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(
        caption="ratios are full / sampled; GPU memory is computed: the least that must be there"
    )
    for name in (
        "classes", "full ms", "sampled ms", "ratio", "full CPU ms", "sampled CPU ms", "ratio",
        "full GB", "sampled GB", "ratio", "full GPU GB", "sampled GPU GB", "ratio",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    runs = [(n, True) for n in classes or [30_000, 100_000, 300_000]]
    runs += [(n, False) for n in alone or [1_000_000]]
    for count, both in runs:

        def make(side: Side, count: int = count) -> Problem:
            return Problem(side, count, dim, sampled, batch, steps, seed)

        table.add_row(*compare(count, make, both, console))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
