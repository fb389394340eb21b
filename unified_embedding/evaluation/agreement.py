"""How far an engine or a server agrees with the fp32 graph, figure by figure and query by query."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from unified_embedding.datasets.task_table import BROWSE, CAMERA, SHOP
from unified_embedding.errors import CodeError
from unified_embedding.measure.files import write_text
from unified_embedding.protocols.measure import Cell, Measurement, paired
from unified_embedding.protocols.tasks import CAMERA_EXACT, MAIN
from unified_embedding.retrieval import COMPARISONS, Comparison, Interval

FIGURES: Final = (
    MAIN[CAMERA.name],
    (CAMERA_EXACT, "R@1"),
    MAIN[SHOP.name],
    MAIN[BROWSE.name],
)


@dataclass(frozen=True)
class Agreement:
    """Two runtimes of one embedder on one test set.

    Attributes:
        test_set: digest of the frozen test set.
        version: of the embedder.
        engine: what was compared with the row.
        row: name of the row, computed in fp32 by onnxruntime.
        queries: number of top-1 answers compared per comparison.
        same_first: comparison -> share of queries whose best answer is the same picture.
        worst: comparison -> the figure that moved most, as (task, metric, difference in points
            of 1, difference in queries).
        moved: comparison -> the paired difference of each of `FIGURES`, in their order; None
            where the task was not searched.
        figures: `FIGURES` when it was measured.
    """

    test_set: str
    version: str
    engine: str
    row: str
    queries: int
    same_first: dict[str, float]
    worst: dict[str, tuple[str, str, float, float]]
    moved: dict[str, list[Interval | None]]
    figures: tuple[tuple[str, str], ...] = FIGURES

    def save(self, folder: Path) -> None:
        """Write `folder/ENGINE.json`, whole or not at all."""
        write_text(folder / f"{self.engine}.json", json.dumps(asdict(self), indent=1) + "\n")


def agreement(ours: Measurement, theirs: Measurement, **names: Any) -> Agreement:
    """Compare two measurements of the same tasks; `names` are the other fields of `Agreement`.

    Raises:
        CodeError: they are not of the same tasks and queries.
    """
    if set(ours.samples) != set(theirs.samples):
        raise CodeError("two measurements of different tasks cannot be compared")
    return Agreement(
        **names,
        queries=sum(len(rows) for (_, kind), rows in ours.first.items() if kind == "float"),
        same_first={kind: _same_first(ours, theirs, kind) for kind in COMPARISONS},
        worst={kind: _worst(ours, theirs, kind) for kind in COMPARISONS},
        moved={
            kind: [paired(ours, theirs, Cell(*figure, kind)) for figure in FIGURES]
            for kind in COMPARISONS
        },
    )


def load_agreements(folder: Path, test_set: str, versions: Sequence[str]) -> list[Agreement]:
    """Those saved for this test set and these embedder versions, by engine."""
    found = []
    for path in sorted(folder.glob("*.json")):
        raw = json.loads(path.read_text())
        raw["figures"] = tuple(tuple(figure) for figure in raw.get("figures", ()))
        if raw["figures"] != FIGURES:
            continue  # Of an earlier release: compare again.
        raw["worst"] = {kind: tuple(value) for kind, value in raw["worst"].items()}
        raw["moved"] = {
            kind: [None if one is None else Interval(**one) for one in moved]
            for kind, moved in raw["moved"].items()
        }
        one = Agreement(**raw)
        if one.test_set == test_set and one.version in versions:
            found.append(one)
    return found


def _same_first(ours: Measurement, theirs: Measurement, kind: Comparison) -> float:
    same = [
        rows == theirs.first[task, kind]
        for (task, comparison), rows in ours.first.items()
        if comparison == kind
    ]
    return float(np.concatenate(same).mean())


def _worst(
    ours: Measurement, theirs: Measurement, kind: Comparison
) -> tuple[str, str, float, float]:
    def moved(cell: Cell) -> float:
        return float((ours.samples[cell].values - theirs.samples[cell].values).mean())

    cell = max((c for c in ours.samples if c.comparison == kind), key=lambda c: abs(moved(c)))
    queries = len(ours.samples[cell].values)
    return cell.task, cell.metric, moved(cell), moved(cell) * queries
