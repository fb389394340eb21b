"""What three specialists cost against one unified embedder: measured speed, computed storage."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Final

from unified_embedding.evaluation.embedders import Embedder

PICTURES: Final = 96
ROUNDS: Final = 3


def speeds(embedders: Mapping[str, Embedder], images: Sequence[bytes]) -> dict[str, float]:
    """Pictures per second of each embedder, decoding included; the median of `ROUNDS` rounds.

    The embedders take turns within a round, so a machine that slows down slows all of them.
    """
    for embedder in embedders.values():
        embedder.embed(images[:16])  # Loads the network and touches its memory once.
    seconds: dict[str, list[float]] = {name: [] for name in embedders}
    for _ in range(ROUNDS):
        for name, embedder in embedders.items():
            begin = time.perf_counter()
            embedder.embed(images)
            seconds[name].append(time.perf_counter() - begin)
    return {name: len(images) / statistics.median(times) for name, times in seconds.items()}
