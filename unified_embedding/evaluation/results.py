"""Everything that one evaluation found, in one value that the page and the pictures read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from unified_embedding.evaluation.config import Elsewhere, EmbedderRow, EvaluationConfig
from unified_embedding.evaluation.experiments import Findings
from unified_embedding.evaluation.rotations import Rotated
from unified_embedding.protocols.measure import Cell, Measurement, paired
from unified_embedding.retrieval import Comparison, Interval


@dataclass(frozen=True, eq=False)
class Searched:
    """What was searched.

    Attributes:
        digest: of the frozen test set.
        queries: task -> number of queries.
        clusters: task -> number of products or families.
        gallery: task -> number of gallery pictures (the largest, where there are several).
        searches: task -> number of searches.
        unseen: domains that no training picture belongs to.
    """

    digest: str
    queries: Mapping[str, int]
    clusters: Mapping[str, int]
    gallery: Mapping[str, int]
    searches: Mapping[str, int]
    unseen: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class RowResult:
    """One row of the table; without a measurement it was not run.

    Attributes:
        row: as configured.
        measurement: scores, or None.
        dim: width of the embedding, 0 when not run.
        facts: see `Embedder`.
        speed: pictures per second, decoding included, or None.
        elsewhere: name of a further test set -> scores there.
        rotated: codes under random fixed maps, one per width.
    """

    row: EmbedderRow
    measurement: Measurement | None = None
    dim: int = 0
    facts: Mapping[str, Any] | None = None
    speed: float | None = None
    elsewhere: Mapping[str, Measurement] = field(default_factory=dict)
    rotated: Sequence[Rotated] = ()

    def interval(self, cell: Cell) -> Interval | None:
        """Mean and interval of one figure; None when there is none."""
        if self.measurement is None or cell not in self.measurement.samples:
            return None
        return self.measurement.samples[cell].interval()


@dataclass(frozen=True, eq=False)
class Results:
    """All of one evaluation.

    Attributes:
        config: what was asked for.
        test_set: what was searched.
        rows: in the order of the configuration.
        findings: of the experiments on cached features, or None.
        environment: what it ran on, for the page.
    """

    config: EvaluationConfig
    test_set: Searched
    rows: tuple[RowResult, ...]
    findings: Findings | None
    environment: Mapping[str, str]

    def named(self, name: str) -> RowResult:
        """The row of that name."""
        return next(result for result in self.rows if result.row.name == name)

    def gain(
        self,
        ours: str,
        theirs: str | None,
        task: str,
        metric: str,
        comparison: Comparison = "float",
    ) -> Interval | None:
        """Paired difference of two rows' figures; None unless both were run."""
        if theirs is None:
            return None
        rows = self.named(ours), self.named(theirs)
        cell = Cell(task, metric, comparison)
        return paired(rows[0].measurement, rows[1].measurement, cell)

    def gain_elsewhere(self, ours: str, theirs: str | None, place: Elsewhere) -> Interval | None:
        """The same on a further test set, by float."""
        if theirs is None:
            return None
        left, right = (self.named(name).elsewhere.get(place.name) for name in (ours, theirs))
        return paired(left, right, Cell(place.task, place.metric, "float"))


def loss(
    measurement: Measurement | None, task: str, metric: str, comparison: Comparison
) -> Interval | None:
    """Paired difference of a comparison and the float cosine of the same vectors."""
    if measurement is None or Cell(task, metric, comparison) not in measurement.samples:
        return None
    ours = measurement.samples[Cell(task, metric, comparison)]
    return ours.minus(measurement.samples[Cell(task, metric, "float")]).interval()


def as_json(results: Results) -> dict[str, Any]:
    """Every figure with its interval, for programs: model cards, dashboards, later pages."""
    return {
        "test_set": asdict(results.test_set),
        "environment": dict(results.environment),
        "rows": [
            {
                **result.row.model_dump(mode="json"),
                "dim": result.dim,
                "facts": dict(result.facts or {}),
                "run": result.measurement is not None,
                "figures": _figures(result.measurement),
                "rotations": [_rotations(one) for one in result.rotated],
                "elsewhere": {name: _figures(one) for name, one in result.elsewhere.items()},
            }
            for result in results.rows
        ],
    }


def _figures(measurement: Measurement | None) -> list[dict[str, Any]]:
    if measurement is None:
        return []
    return [
        {**cell._asdict(), **asdict(samples.interval()), "queries": len(samples.values)}
        for cell, samples in measurement.samples.items()
    ]


def _rotations(found: Rotated) -> dict[str, Any]:
    figures = []
    for cell, each in found.losses.items():
        interval = found.mean(cell)
        assert interval is not None
        named = {**cell._asdict(), **asdict(interval), "sd": found.spread(cell), "maps": len(each)}
        figures.append(named)
    return {"bits": found.bits, "minus_float": figures}
