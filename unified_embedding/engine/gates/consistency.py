"""An engine must agree with itself: in any batch, at any position, whatever ran before."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.onnx_runner import Runner

LEAST_COSINE: Final = 0.9999
"""For one picture in batches of different size, where kernels differ; equal bits otherwise."""


def problems(run: Runner, pixels: NDArray[np.uint8], largest: int, exact: bool) -> list[str]:
    """Sentences about what does not hold; empty when all does.

    Known defects it looks for: different answers for identical rows of a batch, and answers
    that depend on the batch size (TensorRT issue 4813), and the previous request's answer
    after the input changed (Triton issue 8550, with CUDA graphs).

    Args:
        run: the engine, pixels [N, S, S, 3] -> embedding [N, D].
        pixels: uint8 [M, S, S, 3] of different pictures, M >= 2.
        largest: largest batch the engine takes.
        exact: the answers for a picture are bit-identical whatever its batch.
    """
    found = [*_rows(run, pixels, largest), *_batches(run, pixels, largest, exact)]
    return [*found, *_staleness(run, pixels)]


def _rows(run: Runner, pixels: NDArray[np.uint8], largest: int) -> Iterator[str]:
    same = run(np.repeat(pixels[:1], largest, axis=0))
    differing = int((same != same[0]).any(axis=1).sum())
    if differing:
        yield f"{differing} of {largest} identical rows of one batch got another embedding"


def _batches(run: Runner, pixels: NDArray[np.uint8], largest: int, exact: bool) -> Iterator[str]:
    alone = run(pixels[:1])
    for size in sorted({2, largest // 2, largest} - {0, 1}):
        rows = run(np.resize(pixels, (size, *pixels.shape[1:])))
        if not np.isfinite(rows).all():
            yield f"batch {size} holds NaN or infinity"
        elif exact and not np.array_equal(rows[:1], alone):
            yield f"a picture's embedding in a batch of {size} is not the one it gets alone"
        elif _cosine(rows[0], alone[0]) < LEAST_COSINE:
            cosine = _cosine(rows[0], alone[0])
            yield f"cosine {cosine:.6f} between a picture alone and in a batch of {size}"


def _staleness(run: Runner, pixels: NDArray[np.uint8]) -> Iterator[str]:
    truth = run(pixels[:2])
    for turn, row in enumerate((0, 1, 0, 1), start=1):
        answer = run(pixels[row : row + 1])
        if _cosine(answer[0], truth[row]) < LEAST_COSINE:
            yield f"of pictures A, B, A, B asked one by one, answer {turn} is not that picture's"


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    a, b = left.astype(np.float64), right.astype(np.float64)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
