"""What `make tune` saw: ratios to what is installed, the Pareto front, table and plot."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.tuning.server import CALLERS, Reading
from unified_embedding.measure.files import write_json, write_text
from unified_embedding.measure.paired import ratio, told
from unified_embedding.measure.plots import Axis, Series, line_chart
from unified_embedding.measure.questions import bounds, ratio_table
from unified_embedding.measure.rounds import paired
from unified_embedding.retrieval import Interval

COLUMNS = ("setting", "images/s", "of installed", "CPU-ms", "p50 ms, one caller", "of installed")


@dataclass(frozen=True)
class Seen:
    """One setting's rounds beside those of what is installed.

    Attributes:
        config: the setting.
        rounds: its readings by round.
        installed: those of the installed setting.
        counted: the rounds that count.
    """

    config: EmbedderConfig
    rounds: Mapping[int, Reading]
    installed: Mapping[int, Reading]
    counted: frozenset[int]

    @property
    def throughput(self) -> Interval:
        """Pictures per second of many callers over the installed setting's."""
        return self._ratio("images_per_s")

    @property
    def p50(self) -> Interval:
        """A single caller's wait over the installed setting's."""
        return self._ratio("p50_ms")

    def median(self, name: str) -> float:
        """The median round of one of a reading's figures."""
        return statistics.median(float(getattr(one, name)) for one in self.rounds.values())

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "setting": asdict(self.config),
            "label": label(self.config),
            "throughput_of_installed": self.throughput.mean,
            "throughput_interval": bounds(self.throughput),
            "p50_of_installed": self.p50.mean,
            "p50_interval": bounds(self.p50),
            "rounds": {number: asdict(one) for number, one in self.rounds.items()},
        }

    def _ratio(self, name: str) -> Interval:
        sides = [{n: getattr(one, name) for n, one in side.items()} for side in self._sides]
        ours, installed = paired(self.counted, *sides)
        if not ours:  # The rounds it took part in were found busy later.
            ours, installed = paired(self.rounds, *sides)
        return ratio(ours, installed)

    @property
    def _sides(self) -> tuple[Mapping[int, Reading], Mapping[int, Reading]]:
        return self.rounds, self.installed


def label(config: EmbedderConfig) -> str:
    """A setting in words."""
    parts = [f"{config.instances} instance{'s' if config.instances > 1 else ''}"]
    if "threads" in config.parameters:
        threads, streams, pictures = (
            config.parameters[name] for name in ("threads", "streams", "slice")
        )
        parts.append(f"{threads} threads, {streams} streams, {pictures} pictures each")
    parts += [f"batch {config.max_batch_size}", f"wait {config.queue_delay_us} us"]
    return ", ".join(parts)


def front(seen: Sequence[Seen]) -> list[Seen]:
    """The settings that no other one beats in both figures, by throughput."""
    best = [
        one
        for one in seen
        if not any(
            other.throughput.mean >= one.throughput.mean
            and other.p50.mean <= one.p50.mean
            and _place(other) != _place(one)
            for other in seen
        )
    ]
    return sorted(best, key=lambda one: one.throughput.mean)


def rows(seen: Sequence[Seen]) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS` for every setting."""
    return [
        (
            label(one.config),
            f"{one.median('images_per_s'):.0f}",
            told(one.throughput),
            f"{one.median('cpu_ms'):.2f}",
            f"{one.median('p50_ms'):.2f}",
            told(one.p50),
        )
        for one in seen
    ]


def table(seen: Sequence[Seen]) -> Table:
    """All settings; those of the Pareto front are marked."""
    found = Table(
        title=f"{CALLERS} callers, and a single one; * Pareto front", title_justify="left"
    )
    found.add_column("")
    for name in COLUMNS:
        found.add_column(name, justify="left" if name == "setting" else "right")
    best = front(seen)
    for one, cells in zip(seen, rows(seen), strict=True):
        found.add_row("*" if one in best else "", *cells)
    return found


def conclusion(record: Mapping[str, Any]) -> Iterator[str]:
    """Markdown lines: the winner beside what is installed, how busy the machine was, what is kept.

    `record` is tune.json's.
    """
    for title, rounds in list(record["rounds"].items())[-1:]:
        if record["ratios"]:
            yield from ratio_table(record["ratios"])
            yield ""
        yield f"{title}: {rounds['told']}."
        yield ""
    yield f"{record['verdict']}."


def write(record: dict[str, Any], seen: Sequence[Seen], out: Path) -> None:
    """tune.json, tune.md and pareto.svg."""
    best = front(seen)
    lines = ["|  | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for one, cells in zip(seen, rows(seen), strict=True):
        lines.append(f"| {'*' if one in best else ''} | " + " | ".join(cells) + " |")
    write_text(out / "tune.md", "\n".join(lines) + "\n")
    write_text(out / "pareto.svg", plot(seen))
    write_json(out / "tune.json", {**record, "pareto_front": [label(one.config) for one in best]})


def plot(seen: Sequence[Seen]) -> str:
    """Single caller's wait over throughput, one dot a setting, the front as a line."""
    places = [_place(one) for one in seen]
    numbers = [str(number) for number in range(2, len(seen) + 1)]
    return line_chart(
        "Settings, relative to what is installed",
        Axis(f"images/s of {CALLERS} callers", from_zero=False),
        Axis("p50 of one caller", from_zero=False),
        [
            Series("Pareto front", [_place(one) for one in front(seen)], dashed=True),
            Series("installed", places[:1], labels=["1"]),
            Series("row of tune.md", places[1:], labels=numbers),
        ],
    )


def _place(one: Seen) -> tuple[float, float]:
    return one.throughput.mean, one.p50.mean
