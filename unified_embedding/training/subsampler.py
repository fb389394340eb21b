"""Which classes a step's softmax compares: the batch's own, and a random rest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import TrainingError

UNLABELLED = -1


def sample_classes(
    labels: NDArray[np.int64], classes: int, sampled: int, seed: tuple[int, ...], name: str = "head"
) -> NDArray[np.int64]:
    """Sorted class numbers int64 [K] that take part in one step's softmax.

    Every class of the batch is in; the rest is drawn uniformly without replacement from the
    others. Pinterest's subsampling module (KDD 2019, section on web-scale classification)
    works so, without a correction for the sampling probability.

    Args:
        labels: classes of the global batch, `UNLABELLED` where an image has none.
        classes: number M of all classes.
        sampled: number K of classes wanted; M or fewer are returned.
        seed: numbers that fix the draw; equal on all ranks, so all draw the same set.
        name: the head, for the error.

    Raises:
        TrainingError: the batch alone holds more than K classes.
    """
    present = np.unique(labels[labels != UNLABELLED])
    if len(present) and not 0 <= present[0] <= present[-1] < classes:
        raise TrainingError(
            f"{name}: labels {present[0]}..{present[-1]} do not fit {classes} classes"
        )
    if sampled >= classes:
        return np.arange(classes)
    if len(present) > sampled:
        raise TrainingError(
            f"{name}: the batch holds {len(present)} ground-truth classes but only {sampled} are "
            f"sampled; set sampled.{name} to at least {len(present)}, or make the batch smaller"
        )
    rng = np.random.default_rng(seed)
    drawn = rng.choice(classes - len(present), sampled - len(present), replace=False, shuffle=False)
    # The r-th absent class: step over the present ones that stand before it.
    absent = drawn + np.searchsorted(present - np.arange(len(present)), drawn, side="right")
    return np.sort(np.concatenate([present, absent]))


def relabel(labels: NDArray[np.int64], sampled: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of `labels` within the sorted set `sampled`; `UNLABELLED` stays as it is.

    Raises:
        TrainingError: a label is not in the set.
    """
    places: NDArray[np.int64] = np.searchsorted(sampled, labels).astype(np.int64)
    found: NDArray[Any] = sampled[np.minimum(places, len(sampled) - 1)] == labels
    missing = (labels != UNLABELLED) & ~found
    if missing.any():
        raise TrainingError(f"class {labels[missing][0]} of the batch was not sampled")
    places[labels == UNLABELLED] = UNLABELLED
    return places
