"""Images per second of engines, taken in turns, so that a busy minute slows all of them."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unified_embedding.onnx_runner import Runner


@dataclass(frozen=True)
class Speed:
    """One engine at one batch size.

    Attributes:
        images_per_second: median over the rounds.
        milliseconds: median of a round's median time for one batch.
    """

    images_per_second: float
    milliseconds: float


def measure(
    runners: Mapping[str, Runner],
    pixels: NDArray[np.uint8],
    batch: int,
    rounds: int = 7,
    seconds: float = 1.0,
) -> dict[str, Speed]:
    """Run every engine for `seconds` in each round, at batches of `batch` pictures.

    Args:
        runners: engines by name, pixels [N, S, S, 3] -> embedding [N, D].
        pixels: uint8 [M, S, S, 3]; the first `batch` of them, repeated when they are fewer.
        batch: pictures at a time.
        rounds: how often each engine has its turn.
        seconds: length of a turn.
    """
    pictures = np.resize(pixels, (batch, *pixels.shape[1:]))
    for run in runners.values():
        run(pictures)
    rates: dict[str, list[float]] = {name: [] for name in runners}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            took = _turn(run, pictures, seconds)
            rates[name].append(batch * len(took) / sum(took))
            times[name].append(1000 * statistics.median(took))
    return {
        name: Speed(statistics.median(rates[name]), statistics.median(times[name]))
        for name in runners
    }


def _turn(run: Runner, pictures: NDArray[np.uint8], seconds: float) -> list[float]:
    took: list[float] = []
    while sum(took) < seconds:
        started = time.perf_counter()
        run(pictures)
        took.append(time.perf_counter() - started)
    return took
