"""Where a request's time goes, from Triton's own statistics of every model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from unified_embedding.client import StageStatistics
from unified_embedding.names import DEFAULT, Names


@dataclass(frozen=True)
class Stage:
    """One step of a request.

    Attributes:
        name: what happens in it.
        mean_ms: mean milliseconds of a request in it.
    """

    name: str
    mean_ms: float


@dataclass(frozen=True)
class Breakdown:
    """The stages of a mean request, in order, and how the server batched.

    Attributes:
        stages: milliseconds of each stage; they add up to the client's mean.
        mean_batch: pictures per executed batch, by model.
        failures: requests each model failed.
    """

    stages: tuple[Stage, ...]
    mean_batch: Mapping[str, float]
    failures: Mapping[str, int]

    @classmethod
    def between(
        cls,
        before: Mapping[str, StageStatistics],
        after: Mapping[str, StageStatistics],
        client_mean_ms: float,
        names: Names = DEFAULT,
    ) -> Self:
        """From two readings of the statistics and the client's mean time from sending."""
        spent = {
            name: statistics - before.get(name, StageStatistics())
            for name, statistics in after.items()
        }
        found: list[Stage] = []
        for model, work in zip(names.models, ("decode", "engine", "binarize"), strict=False):
            one = spent.get(model, StageStatistics())
            if one.requests:
                # A request spends its whole batch's time in a model.
                busy = one.input_ns + one.infer_ns + one.output_ns
                found.append(Stage(f"{work}: queue", one.queue_ns / one.requests / 1e6))
                found.append(Stage(work, busy / one.requests / 1e6))
        whole = spent.get(names.ensemble, StageStatistics())
        inside = whole.total_ns / whole.requests / 1e6 if whole.requests else 0.0
        if found and inside:
            between = inside - sum(stage.mean_ms for stage in found)
            found.append(Stage("hand-over between steps", max(0.0, between)))
        if inside:
            found.append(Stage("transport and client", max(0.0, client_mean_ms - inside)))
        return cls(
            stages=tuple(found),
            mean_batch={name: one.mean_batch for name, one in spent.items() if one.executions},
            failures={name: one.failures for name, one in spent.items() if one.failures},
        )
