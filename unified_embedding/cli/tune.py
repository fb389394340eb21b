"""`make tune`: find how Triton runs the installed engine best on this machine, and keep that.

Every setting is a real server with the installed engine; those that are not measured are paused.
One knob after the other: its values are measured in turns beside what is installed and the best
setting so far. At the end the winner runs against what is installed once more; it is kept only
if it is not slower there, and `make engine` then installs it.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from unified_embedding import onnx_file
from unified_embedding.checkout import ROOT
from unified_embedding.engine import building, targets
from unified_embedding.engine.choice import Choice
from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.tuning import report as tune_report
from unified_embedding.engine.tuning import tuning
from unified_embedding.engine.tuning.report import Seen
from unified_embedding.engine.tuning.server import Reading, TunedServer, one_round
from unified_embedding.errors import BuildError, EmbeddingError
from unified_embedding.measure.pictures import PHOTOGRAPH, scaled
from unified_embedding.measure.provenance import commit, machine
from unified_embedding.names import DEFAULT
from unified_embedding.serving import model_config
from unified_embedding.serving.local_server import end_in_order, run
from unified_embedding.spec import ENGINE_KEY, VERSION_KEY

FULL: Final = 4
# The last comparison is longer than the sweep's: in rounds, and in each of them.
RERUN_LENGTH: Final = 2
# In the comparison of two equal servers either may come out this much slower.
NOISE: Final = 0.02
# A setting for many callers may not make a single caller wait longer than this.
LONGER: Final = 1.05
START_S: Final = 5.0

Knob = Callable[[EmbedderConfig], Sequence[EmbedderConfig]]

console = Console(highlight=False)


def main(
    repository: Annotated[Path, typer.Option(help="Where the engine is installed.")] = (
        ROOT / "model_repository"
    ),
    knobs: Annotated[str, typer.Option(help="What to sweep, in this order.")] = (
        "instances,slice,batch,delay"
    ),
    seconds: Annotated[
        float, typer.Option(envvar="DURATION", help="Seconds of one measurement.")
    ] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each setting.")] = 3,
    full: Annotated[bool, typer.Option(envvar="FULL", help="Measure four times as long.")] = False,
    tuned: Annotated[Path, typer.Option(envvar="TUNING", help="File for the values found.")] = (
        tuning.FILE
    ),
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = (ROOT / "results" / "tune"),
) -> None:
    """Sweep, print the Pareto front, install what is fastest."""
    seconds *= FULL if full else 1
    try:
        unknown = set(knobs.split(",")) - set(KNOBS)
        if unknown:
            raise BuildError(f"--knobs {knobs}: use some of {', '.join(KNOBS)}")
        name, installed = what_is_installed(repository, tuned)
        sweeps = {knob: KNOBS[knob] for knob in knobs.split(",")}
        console.print(f"tuning {name}: about {minutes(installed, sweeps, rounds, seconds):.0f} min")
        with tempfile.TemporaryDirectory() as folder:
            tuner = Tuner(repository, installed, Path(folder), rounds, seconds)
            winner = tuner.sweep(sweeps)
            rerun = tuner.rerun(winner) if winner != installed else None
        better = rerun is not None and not_slower(*rerun)
        report(tuner, name, winner if better else installed, rerun, out)
        if better and rerun:
            tuning.save(winner, name, rerun[1].record(), tuned)
            console.print(f"written: {tuned}")
            install(repository, tuned)
        console.print(f"written: {out}/tune.json, {out}/tune.md, {out}/pareto.svg")
    except (BuildError, EmbeddingError, ValueError) as error:
        console.print(f"[bold red]not tuned:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


def report(
    tuner: "Tuner",
    name: str,
    chosen: EmbedderConfig,
    rerun: tuple[Seen, Seen] | None,
    out: Path,
) -> None:
    """Write and print what was measured, and which setting came out of it."""
    if chosen != tuner.installed:
        verdict = f"chosen: {tune_report.label(chosen)}"
    else:
        verdict = (
            f"kept: {tune_report.label(chosen)}; nothing was faster for many callers and "
            "no slower for one"
        )
    record = {
        "what": name,
        "installed": asdict(tuner.installed),
        "chosen": asdict(chosen),
        "verdict": verdict,
        "settings": [seen.record() for seen in tuner.seen],
        "rerun": [seen.record() for seen in rerun] if rerun else None,
        "seconds": tuner.seconds,
        "rounds": tuner.rounds,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(ROOT),
        "machine": machine(),
    }
    tune_report.write(record, tuner.seen, out)
    console.print(tune_report.table(tuner.seen))
    if rerun:
        console.print(tune_report.comparison(rerun))
    console.print(verdict)


def what_is_installed(repository: Path, tuned: Path) -> tuple[str, EmbedderConfig]:
    """The tuning's key, and how the installed engine is run. Raises BuildError."""
    place = repository / DEFAULT.embedder
    choice = Choice.installed(place)
    if choice is None:
        raise BuildError(f"{place} holds no engine that `make engine` installed: run it first")
    _, spec = onnx_file.load(choice.model)
    chosen = targets.choose(choice.target, choice.precision, choice.options, building.OUT)
    config = building.tuned_config(spec, chosen, tuned)
    stated = model_config.read(place).parameters
    version, engine = (stated[key].string_value for key in (VERSION_KEY, ENGINE_KEY))
    kind = f"{chosen.name}-{chosen.precision}-"
    if config is None or version != spec.version or not engine.startswith(kind):
        raise BuildError(f"{place} does not hold {choice} of today: run `make engine`")
    return tuning.key(spec, chosen), config


def minutes(config: EmbedderConfig, sweeps: dict[str, Knob], rounds: int, seconds: float) -> float:
    """How long it will take, about."""
    settings = [len(others(config, knob)) + 2 for knob in sweeps.values()]
    measured = rounds * sum(settings) + 2 * RERUN_LENGTH * (RERUN_LENGTH * rounds + 1)
    return (measured * (1.5 * seconds + 1) + (sum(settings) + 2) * START_S) / 60


def others(config: EmbedderConfig, knob: Knob) -> list[EmbedderConfig]:
    """The knob's settings beside `config`, each once."""
    found: list[EmbedderConfig] = []
    for setting in knob(config):
        if setting != config and setting not in found:
            found.append(setting)
    return found


def instances(config: EmbedderConfig) -> Sequence[EmbedderConfig]:
    """Copies of the engine, and how each uses the cores."""
    if "threads" not in config.parameters:
        return [replace(config, instances=count) for count in (1, 2, 3)]
    cores = len(os.sched_getaffinity(0))
    half = max(1, cores // 2)
    arranged = [(1, cores, cores), (1, cores, 1), (1, half, half), (2, cores, cores)]
    arranged += [(2, half, half), (cores, 1, 1)]
    return [
        replace(config, instances=count, parameters=_with(config, threads=threads, streams=streams))
        for count, threads, streams in arranged
    ]


def slices(config: EmbedderConfig) -> Sequence[EmbedderConfig]:
    """Pictures a stream takes at a time."""
    if "slice" not in config.parameters:
        return []
    return [replace(config, parameters=_with(config, slice=size)) for size in (1, 2, 4, 8, 16)]


def batches(config: EmbedderConfig) -> Sequence[EmbedderConfig]:
    """The largest batch; a plan's is fixed when it is built."""
    sizes = (16, 32) if config.backend == "python" else (config.max_batch_size,)
    return [replace(config, max_batch_size=size) for size in sizes]


def delays(config: EmbedderConfig) -> Sequence[EmbedderConfig]:
    """How long a request waits for others."""
    return [replace(config, queue_delay_us=delay) for delay in (0, 200, 1000, 2000)]


KNOBS: Final[dict[str, Knob]] = {
    "instances": instances,
    "slice": slices,
    "batch": batches,
    "delay": delays,
}


class Tuner:
    """Measures settings beside the installed one."""

    def __init__(
        self,
        repository: Path,
        installed: EmbedderConfig,
        folder: Path,
        rounds: int,
        seconds: float,
    ) -> None:
        """`folder` is for the servers' repositories and logs."""
        self._repository, self._folder = repository, folder
        self.installed, self.rounds, self.seconds = installed, rounds, seconds
        self._pictures = scaled(str(ROOT / "demo" / "shots"), *PHOTOGRAPH)
        self._started = 0
        self.seen: list[Seen] = []

    def sweep(self, sweeps: dict[str, Knob]) -> EmbedderConfig:
        """One knob after the other; returns the best setting found."""
        best = self.installed
        for name, knob in sweeps.items():
            settings = others(best, knob)
            if not settings:
                continue
            beside = [self.installed] if best == self.installed else [self.installed, best]
            found = self._measure(name, [*beside, *settings], self.rounds, self.seconds)
            self.seen += [one for one in found if one.config not in [s.config for s in self.seen]]
            best = fastest(found).config
        return best

    def rerun(self, winner: EmbedderConfig) -> tuple[Seen, Seen]:
        """What is installed and the winner once more, longer."""
        rounds, seconds = RERUN_LENGTH * self.rounds + 1, RERUN_LENGTH * self.seconds
        first, second = self._measure("once more", [self.installed, winner], rounds, seconds)
        return first, second

    def _measure(
        self, title: str, settings: Sequence[EmbedderConfig], rounds: int, seconds: float
    ) -> list[Seen]:
        """The first setting is the one that all are compared with."""
        total = len(settings) * (rounds + 1)
        with ExitStack() as stack, Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{title}: starting servers", total=total)
            servers = []
            for setting in settings:
                self._started += 1
                place = self._folder / str(self._started)
                server = TunedServer(setting, self._repository, place)
                stack.callback(server.stop)
                server.tree.pause()
                servers.append(server)
                progress.advance(task)
            readings: list[list[Reading]] = [[] for _ in settings]
            turns = list(zip(settings, servers, readings, strict=True))
            for number in range(rounds):
                # Forwards, then backwards: a machine that gets slower favours nobody.
                for setting, server, seen in turns if number % 2 == 0 else reversed(turns):
                    progress.update(task, description=f"{title}: {tune_report.label(setting)}")
                    seen.append(asyncio.run(one_round(server, self._pictures, seconds)))
                    progress.advance(task)
        return [
            Seen(setting, seen, readings[0])
            for setting, seen in zip(settings, readings, strict=True)
        ]


def fastest(found: Sequence[Seen]) -> Seen:
    """The most pictures per second, of the settings that keep a single caller's wait."""
    return max((one for one in found if one.p50 <= LONGER), key=lambda one: one.throughput)


def not_slower(installed: Seen, winner: Seen) -> bool:
    """The winner is faster for many callers, and not slower for a single one."""
    return winner.throughput > installed.throughput + NOISE and winner.p50 <= 1 + NOISE


def install(repository: Path, tuned: Path) -> None:
    """`make engine` with the values that were written. Raises BuildError."""
    command = [sys.executable, str(ROOT / "build" / "engine.py"), "--repository", str(repository)]
    if run([*command, "--tuned", str(tuned)]):
        raise BuildError(f"the engine was not installed; remove {tuned} or mend what it names")


def _with(config: EmbedderConfig, **values: int) -> dict[str, str]:
    return {**config.parameters, **{name: str(value) for name, value in values.items()}}


def program() -> None:
    """Parse the command line and run."""
    end_in_order()
    typer.run(main)


if __name__ == "__main__":
    program()
