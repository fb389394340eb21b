"""Rounding weights to integers so that a layer's answers, not its weights, stay as they were.

GPTQ (Frantar et al., 2022, arXiv 2210.17323): weights are rounded one after the other, and those
not yet rounded take up the error, by the second moments of the layer's inputs.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

DAMPING: Final = 0.01
"""Added to the moments' diagonal, of its mean: GPTQ's own value."""
_FACTORS: Final = np.linspace(0.5, 1.0, 51)


def rounded(
    weights: NDArray[np.float32], moments: NDArray[np.float64], largest: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and scales with `integers * scale` in place of `weights`.

    Args:
        weights: [G, O, K]: G groups of O outputs, each a sum over K inputs.
        moments: [G, K, K]: covariance of each group's inputs.
        largest: integers run from -largest to largest.

    Returns:
        Integers [G, O, K] and one scale for each output, [G, O].
    """
    groups, _, inputs = weights.shape
    damping = DAMPING * np.trace(moments, axis1=1, axis2=2) / inputs + 1e-8
    damped = moments + damping[:, None, None] * np.eye(inputs)
    diagonal = np.diagonal(damped, axis1=1, axis2=2)
    scale = _scale(weights, diagonal, largest)

    # The inputs that matter most first: the others make up for their errors.
    order = np.argsort(-diagonal, axis=1, kind="stable")
    rows = np.arange(groups)[:, None]
    damped = damped[rows[:, :, None], order[:, :, None], order[:, None, :]]
    spread = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1).astype(np.float32)
    left = np.take_along_axis(weights, order[:, None, :], axis=2).astype(np.float32)
    integers = np.empty_like(left)
    for k in range(inputs):
        integers[:, :, k] = np.clip(np.round(left[:, :, k] / scale), -largest, largest)
        error = (left[:, :, k] - integers[:, :, k] * scale) / spread[:, k, k, None]
        left[:, :, k + 1 :] -= error[:, :, None] * spread[:, None, k, k + 1 :]
    back = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(integers, back[:, None, :], axis=2).astype(np.int8), scale


def _scale(
    weights: NDArray[np.float32], diagonal: NDArray[np.float64], largest: int
) -> NDArray[np.float32]:
    """The scale [G, O] with the least error of the answers, inputs taken as uncorrelated."""
    whole = np.maximum(np.abs(weights).max(axis=2), 1e-8) / largest
    best, least = whole, np.full(whole.shape, np.inf)
    for factor in _FACTORS:
        scale = (factor * whole)[:, :, None]
        integers = np.clip(np.round(weights / scale), -largest, largest)
        error = ((integers * scale - weights) ** 2 * diagonal[:, None, :]).sum(axis=2)
        best = np.where(error < least, scale[:, :, 0], best)
        least = np.minimum(error, least)
    return np.asarray(best, np.float32)
