"""Proxies that begin where their classes are, instead of at random."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from unified_embedding.image import Preprocessing
from unified_embedding.training.bank import FIRST_NORM
from unified_embedding.training.distributed import Rank, sum_over_ranks
from unified_embedding.training.examples import Examples
from unified_embedding.training.model import UnifiedEmbedder
from unified_embedding.training.validation import embed

_PART: Final = 512
"""Pictures whose embeddings are held at once."""


def class_means(
    model: UnifiedEmbedder,
    examples: Examples,
    numbers: NDArray[np.int64],
    limit: int,
    preprocessing: Preprocessing,
    rank: Rank,
) -> Tensor:
    """Proxies float32 [M, D] in the direction of each class's mean embedding, equal on all ranks.

    The mean is over L2-normalised embeddings, without augmentation: of all unit vectors it has the
    largest mean cosine with them. Losses normalise proxies, so a row's norm does not change them;
    but it divides the gradient, and so the angle that a step turns. Rows therefore get the norm
    that random ones have (`FIRST_NORM`), and the same learning rate suits both.

    Args:
        model: the starting model, put into eval mode.
        examples: training rows.
        numbers: class number int64 [N] of every row, negative for none; each of 0 .. M-1 occurs.
        limit: pictures per class at most, evenly spaced over its rows.
        preprocessing: of the pictures.
        rank: this process, which embeds its share of the pictures.
    """
    found = {"": numbers}
    rows = evenly_spaced(numbers, limit)
    sums = class_sums(model, model.dim, examples, found, rows, preprocessing, rank)[""]
    return functional.normalize(sums) * FIRST_NORM


def class_sums(
    model: nn.Module,
    dim: int,
    examples: Examples,
    numbers: Mapping[str, NDArray[np.int64]],
    rows: NDArray[np.int64],
    preprocessing: Preprocessing,
    rank: Rank,
) -> dict[str, Tensor]:
    """Column -> sums [M, D], by class, of the unit embeddings of `rows`; equal on all ranks.

    Args:
        model: pixels -> embedding [N, D]; put into eval mode.
        dim: D.
        examples: training rows.
        numbers: column -> class number int64 [N] of every row, negative for none; M - 1 is the
            largest.
        rows: whose pictures are embedded, each rank its share.
        preprocessing: of the pictures.
        rank: this process.
    """
    sums = {c: torch.zeros(int(found.max()) + 1, dim) for c, found in numbers.items()}
    mine = rows[rank.number :: rank.world]
    for start in range(0, len(mine), _PART):
        part = mine[start : start + _PART]
        found = torch.from_numpy(embed(model.eval(), examples, part, preprocessing, rank.device))
        unit = functional.normalize(found)
        for column, total in sums.items():
            labelled = np.flatnonzero(numbers[column][part] >= 0)
            total.index_add_(0, torch.from_numpy(numbers[column][part][labelled]), unit[labelled])
    return {column: sum_over_ranks(total) for column, total in sums.items()}


def evenly_spaced(numbers: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Rows of every class, class by class: all, or `limit` at even distances."""
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] >= 0]
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    parts = []
    for members in np.split(order, starts[1:]):
        count = min(limit, len(members))
        parts.append(members[np.arange(count) * len(members) // count])
    return np.concatenate(parts)
