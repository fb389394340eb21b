"""Where classes are: sums of their pictures' embeddings, and proxies that begin there."""

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
from unified_embedding.training.subsampler import UNLABELLED
from unified_embedding.training.validation import embed

_PART: Final = 512


def class_means(
    model: UnifiedEmbedder,
    examples: Examples,
    numbers: Mapping[str, NDArray[np.int64]],
    limit: int,
    preprocessing: Preprocessing,
    rank: Rank,
) -> dict[str, Tensor]:
    """Label column -> proxies float32 [M, D] in the direction of each class's mean embedding.

    The mean is over L2-normalised embeddings, without augmentation: of all unit vectors it has the
    largest mean cosine with them. Losses normalise proxies, so a row's norm does not change them;
    but it divides the gradient, and so the angle that a step turns. Rows therefore get the norm
    that random ones have (`FIRST_NORM`), and the same learning rate suits both.

    Args:
        model: the starting model, put into eval mode.
        examples: training rows.
        numbers: label column -> class number int64 [N] of every row; each of 0 .. M-1 occurs.
        limit: pictures per class at most, evenly spaced over its rows.
        preprocessing: of the pictures.
        rank: this process.
    """
    chosen = {}
    for column, given in numbers.items():
        chosen[column] = np.full_like(given, UNLABELLED)
        rows = evenly_spaced(given, limit)
        chosen[column][rows] = given[rows]
    counts = {column: int(given.max()) + 1 for column, given in numbers.items()}
    sums = class_sums(model, model.dim, examples, chosen, counts, preprocessing, rank)
    return {column: functional.normalize(total) * FIRST_NORM for column, total in sums.items()}


def class_sums(
    model: nn.Module,
    dim: int,
    examples: Examples,
    numbers: Mapping[str, NDArray[np.int64]],
    classes: Mapping[str, int],
    preprocessing: Preprocessing,
    rank: Rank,
) -> dict[str, Tensor]:
    """Label column -> sums of unit embeddings by class, float32 [M, D] on the CPU.

    Every picture is embedded once, by one rank; all ranks get equal sums.

    Args:
        model: pixels -> embedding [N, D], put into eval mode.
        dim: D.
        examples: rows of pictures.
        numbers: label column -> class number int64 [N] of every row, `UNLABELLED` for none.
        classes: label column -> M.
        preprocessing: of the pictures.
        rank: this process.
    """
    sums = {column: torch.zeros(classes[column], dim) for column in numbers}
    wanted = np.flatnonzero(np.stack([n != UNLABELLED for n in numbers.values()]).any(axis=0))
    mine = wanted[rank.number :: rank.world]
    for start in range(0, len(mine), _PART):
        part = mine[start : start + _PART]
        found = embed(model.eval(), examples, part, preprocessing, rank.device)
        unit = functional.normalize(torch.from_numpy(found))
        for column, total in sums.items():
            labels = torch.from_numpy(numbers[column][part])
            labelled = labels != UNLABELLED
            # On the CPU: on a GPU the order of the additions differs from run to run.
            total.index_add_(0, labels[labelled], unit[labelled])
    return {column: sum_over_ranks(total) for column, total in sums.items()}


def evenly_spaced(numbers: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Rows of every class, class by class: all, or `limit` at even distances."""
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] != UNLABELLED]
    starts = np.flatnonzero(np.diff(numbers[order], prepend=UNLABELLED))
    parts = []
    for members in np.split(order, starts[1:]):
        count = min(limit, len(members))
        parts.append(members[np.arange(count) * len(members) // count])
    return np.concatenate(parts)
