"""`make tune`: find how Triton runs the installed engine best on this machine, and keep that.

Every setting is a real server with the installed engine; those that are not measured are paused.
One knob after the other: its values are measured in short rounds beside what is installed and the
best setting so far, and a setting that is clearly beaten is measured no more. At the end the
winner runs against what is installed once more, until the intervals of both ratios are narrow or
clearly on one side of their targets; it is taken only if both targets are met, and `make engine`
then installs it.
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from unified_embedding import onnx_file
from unified_embedding.checkout import ROOT
from unified_embedding.engine import building
from unified_embedding.engine.choice import Choice
from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.tuning import report as tune_report
from unified_embedding.engine.tuning import tuning
from unified_embedding.engine.tuning.report import Seen
from unified_embedding.engine.tuning.server import CALLERS, Reading, TunedServer, one_round
from unified_embedding.errors import BuildError, EmbeddingError
from unified_embedding.gallery import Gallery
from unified_embedding.load.targets import FASTER, NOT_SLOWER
from unified_embedding.measure.paired import settled
from unified_embedding.measure.pictures import PHOTOGRAPH, scaled
from unified_embedding.measure.provenance import commit, machine
from unified_embedding.measure.questions import record as ratio_record
from unified_embedding.measure.rounds import Rounds
from unified_embedding.names import DEFAULT
from unified_embedding.serving import model_config
from unified_embedding.serving.local_server import end_in_order, run
from unified_embedding.spec import ENGINE_KEY, VERSION_KEY

FULL: Final = 4
ONCE_MORE: Final = "once more"
# Of the time in all, the sweep's; the winner's comparison with what is installed has the rest.
SWEEP: Final = 0.7
# A setting for many callers may not make a single caller wait longer than this.
LONGER: Final = 1.05
# Of the time in all: what installing takes.
ENDING_S: Final = 45.0

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
    ] = 1,
    minutes: Annotated[float, typer.Option(min=0, help="Time in all.")] = 10,
    width: Annotated[
        float, typer.Option(min=0, help="Width of a ratio's interval that ends its rounds.")
    ] = 0.03,
    full: Annotated[bool, typer.Option(envvar="FULL", help="Take four times as long.")] = False,
    tuned: Annotated[Path, typer.Option(envvar="TUNING", help="File for the values found.")] = (
        tuning.FILE
    ),
    out: Annotated[Path, typer.Option(help="Where the report goes.")] = (ROOT / "results" / "tune"),
) -> None:
    """Sweep, print the Pareto front, install what is fastest."""
    minutes *= FULL if full else 1
    began, length = time.monotonic(), max(0.0, 60 * minutes - ENDING_S)
    try:
        unknown = set(knobs.split(",")) - set(KNOBS)
        if unknown:
            raise BuildError(f"--knobs {knobs}: use some of {', '.join(KNOBS)}")
        name, installed = what_is_installed(repository, tuned)
        sweeps = {knob: KNOBS[knob] for knob in knobs.split(",")}
        console.print(f"tuning {name}: {minutes:g} minutes at most")
        with tempfile.TemporaryDirectory() as folder:
            tuner = Tuner(repository, installed, Path(folder), seconds, width)
            winner = tuner.sweep(sweeps, began + SWEEP * length)
            rerun = tuner.rerun(winner, began + length) if winner != installed else None
        taken = rerun is not None and better(rerun)
        report(tuner, name, winner if taken else installed, rerun, out)
        if taken and rerun:
            tuning.save(winner, name, rerun.record(), tuned)
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
    rerun: Seen | None,
    out: Path,
) -> None:
    """Write and print what was measured, and which setting came out of it."""
    ratios = verdicts(rerun, busy=tuner.rounds[ONCE_MORE]["disturbed"]) if rerun else []
    if chosen != tuner.installed:
        verdict = f"chosen: {tune_report.label(chosen)}"
    elif rerun:
        verdict = f"kept: {tune_report.label(chosen)}; {tune_report.label(rerun.config)}: " + (
            ", ".join(f"{one['name']} {one['target']} {one['verdict']}" for one in ratios)
        )
    else:
        verdict = (
            f"kept: {tune_report.label(chosen)}; in the sweep nothing was faster for many callers "
            "without making a single one wait"
        )
    record = {
        "what": name,
        "installed": asdict(tuner.installed),
        "chosen": asdict(chosen),
        "verdict": verdict,
        "settings": [seen.record() for seen in tuner.seen],
        "rerun": rerun.record() if rerun else None,
        "ratios": ratios,
        "rounds": tuner.rounds,
        "seconds": tuner.seconds,
        "width": tuner.width,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(ROOT),
        "machine": machine(),
    }
    tune_report.write(record, tuner.seen, out)
    console.print(tune_report.table(tuner.seen))
    console.print("\n".join(tune_report.conclusion(record)), soft_wrap=True)


def what_is_installed(repository: Path, tuned: Path) -> tuple[str, EmbedderConfig]:
    """The tuning's key, and how the installed engine is run. Raises BuildError."""
    place = repository / DEFAULT.embedder
    choice = Choice.installed(place)
    if choice is None:
        raise BuildError(f"{place} holds no engine that `make engine` installed: run it first")
    _, spec = onnx_file.load(choice.model)
    chosen = building.chosen(choice, place, Gallery.load(choice.gallery), tuned)
    config = building.tuned_config(spec, chosen, tuned)
    stated = model_config.read(place).parameters
    version, engine = (stated[key].string_value for key in (VERSION_KEY, ENGINE_KEY))
    kind = f"{chosen.name}-{chosen.precision}-"
    if config is None or version != spec.version or not engine.startswith(kind):
        raise BuildError(f"{place} does not hold {choice} of today: run `make engine`")
    return tuning.key(spec, chosen), config


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
        seconds: float,
        width: float,
    ) -> None:
        """`folder` is for the servers' repositories and logs."""
        self._repository, self._folder = repository, folder
        self.installed, self.seconds, self.width = installed, seconds, width
        self._pictures = scaled(str(ROOT / "demo" / "shots"), *PHOTOGRAPH)
        self._draw = random.Random(0)
        self._started = 0
        self.seen: list[Seen] = []
        self.rounds: dict[str, dict[str, Any]] = {}

    def sweep(self, sweeps: Mapping[str, Knob], until: float) -> EmbedderConfig:
        """One knob after the other until then (time.monotonic); returns the best setting found."""
        best, left = self.installed, dict(sweeps)
        for name, knob in sweeps.items():
            settings = others(best, knob)
            # Time by the number of servers, as each has to be started and measured.
            servers = [len(others(best, one)) + 2 for one in left.values()]
            del left[name]
            if not settings:
                continue
            now = time.monotonic()
            ends = now + (until - now) * servers[0] / sum(servers)
            beside = [self.installed] if best == self.installed else [self.installed, best]
            found = self._measure(
                name, [*beside, *settings], ends, lambda seen: len(contenders(seen)) == 1
            )
            self.seen += [one for one in found if one.config not in [s.config for s in self.seen]]
            best = fastest(found).config
        return best

    def rerun(self, winner: EmbedderConfig, until: float) -> Seen:
        """The winner beside what is installed, until both verdicts stand."""

        def decided(seen: Sequence[Seen]) -> bool:
            (_, one) = seen
            return settled(one.throughput, self.width, FASTER) and settled(
                one.p50, self.width, NOT_SLOWER
            )

        _, found = self._measure(ONCE_MORE, [self.installed, winner], until, decided)
        return found

    def _measure(
        self,
        title: str,
        settings: Sequence[EmbedderConfig],
        until: float,
        decided: Callable[[Sequence[Seen]], bool],
    ) -> list[Seen]:
        """The first setting is the one that all are compared with."""
        readings: list[dict[int, Reading]] = [{} for _ in settings]

        def seen() -> list[Seen]:
            return [
                Seen(setting, own, readings[0], rounds.counted)
                for setting, own in zip(settings, readings, strict=True)
            ]

        rounds = Rounds(until, settled=lambda: decided(seen()))
        with ExitStack() as stack, Progress(console=console, transient=True) as progress:
            task = progress.add_task(f"{title}: starting servers", total=None)
            servers = []
            for setting in settings:
                self._started += 1
                place = self._folder / str(self._started)
                server = TunedServer(setting, self._repository, place)
                stack.callback(server.stop)
                server.tree.pause()
                servers.append(server)
            for number in rounds:
                going = set(range(len(settings)))
                if number and not rounds.disturbed:
                    going = {0} | {settings.index(one.config) for one in contenders(seen())}
                for chosen in self._draw.sample(sorted(going), len(going)):
                    doing = f"{title}, round {number + 1}: {tune_report.label(settings[chosen])}"
                    progress.update(task, description=doing)
                    readings[chosen][number] = asyncio.run(
                        one_round(servers[chosen], self._pictures, self.seconds)
                    )
        self.rounds[title] = rounds.record()
        return seen()


def contenders(found: Sequence[Seen]) -> list[Seen]:
    """Settings that may still be the fastest, and that may keep a single caller's wait."""
    best = fastest(found).throughput
    return [one for one in found if one.throughput.high >= best.low and not one.p50.low > LONGER]


def fastest(found: Sequence[Seen]) -> Seen:
    """The most pictures per second, of the settings that keep a single caller's wait."""
    kept = (one for one in found if one.p50.mean <= LONGER)
    return max(kept, key=lambda one: one.throughput.mean)


def verdicts(winner: Seen, *, busy: bool = False) -> list[dict[str, Any]]:
    """What was asked of the winner, as JSON values."""
    count = len(winner.counted & winner.rounds.keys())
    many, one = f"images/s of {CALLERS} callers / installed", "p50 of one caller / installed"
    return [
        ratio_record(many, winner.throughput, count, FASTER, busy=busy),
        ratio_record(one, winner.p50, count, NOT_SLOWER, busy=busy),
    ]


def better(winner: Seen) -> bool:
    """Beyond doubt it is faster for many callers, and not slower for a single one."""
    return all(one["verdict"] == "met" for one in verdicts(winner))


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
