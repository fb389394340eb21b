"""What `make tune` saw: ratios to what is installed, the Pareto front, table and plot."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.tuning.server import CALLERS, Reading
from unified_embedding.measure.files import write_json, write_text
from unified_embedding.measure.plots import Axis, Series, line_chart

COLUMNS = ("setting", "images/s", "of installed", "CPU-ms", "p50 ms, one caller", "of installed")


@dataclass(frozen=True)
class Seen:
    """One setting's rounds beside those of what is installed, taken in turns."""

    config: EmbedderConfig
    rounds: Sequence[Reading]
    installed: Sequence[Reading]

    @property
    def throughput(self) -> float:
        """Pictures per second of many callers over the installed setting's; median round."""
        pairs = zip(self.rounds, self.installed, strict=True)
        return statistics.median(own.images_per_s / base.images_per_s for own, base in pairs)

    @property
    def p50(self) -> float:
        """A single caller's wait over the installed setting's; median round."""
        pairs = zip(self.rounds, self.installed, strict=True)
        return statistics.median(own.p50_ms / base.p50_ms for own, base in pairs)

    def median(self, name: str) -> float:
        """The median round of one of a reading's figures."""
        return statistics.median(float(getattr(one, name)) for one in self.rounds)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "setting": asdict(self.config),
            "label": label(self.config),
            "throughput_of_installed": self.throughput,
            "p50_of_installed": self.p50,
            "rounds": [asdict(one) for one in self.rounds],
        }


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
            other.throughput >= one.throughput
            and other.p50 <= one.p50
            and (other.throughput, other.p50) != (one.throughput, one.p50)
            for other in seen
        )
    ]
    return sorted(best, key=lambda one: one.throughput)


def rows(seen: Sequence[Seen]) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS` for every setting."""
    return [
        (
            label(one.config),
            f"{one.median('images_per_s'):.0f}",
            f"{one.throughput:.3f}",
            f"{one.median('cpu_ms'):.2f}",
            f"{one.median('p50_ms'):.2f}",
            f"{one.p50:.3f}",
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


def comparison(rerun: Sequence[Seen]) -> Table:
    """What is installed and the winner, in turns."""
    found = Table(title="once more, in turns: installed, winner", title_justify="left")
    for name in COLUMNS:
        found.add_column(name, justify="left" if name == "setting" else "right")
    for cells in rows(rerun):
        found.add_row(*cells)
    return found


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
    places = [(one.throughput, one.p50) for one in seen]
    numbers = [str(number) for number in range(2, len(seen) + 1)]
    return line_chart(
        "Settings, relative to what is installed",
        Axis(f"images/s of {CALLERS} callers", from_zero=False),
        Axis("p50 of one caller", from_zero=False),
        [
            Series("Pareto front", [(one.throughput, one.p50) for one in front(seen)], dashed=True),
            Series("installed", places[:1], labels=["1"]),
            Series("row of tune.md", places[1:], labels=numbers),
        ],
    )
