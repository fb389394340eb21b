"""What a closed loop costs the server whose processes are on this machine."""

import time
from dataclasses import dataclass

from unified_embedding.errors import EmbeddingError
from unified_embedding.measure.generator import Request, closed_loop
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.recorder import Recorder


@dataclass(frozen=True)
class Costed:
    """One closed loop.

    Attributes:
        recorder: its requests.
        seconds: until the last answer, which for a slow server comes long after the loop's end.
        cpu_s: CPU time that the server's processes used meanwhile; None when they are elsewhere.
        memory_mb: what they hold at the end; None likewise.
    """

    recorder: Recorder
    seconds: float
    cpu_s: float | None
    memory_mb: float | None

    @property
    def images_per_s(self) -> float:
        """Pictures answered."""
        return self.recorder.images / self.seconds

    @property
    def cpu_ms(self) -> float | None:
        """CPU time for one picture, milliseconds; None when the processes are elsewhere."""
        return None if self.cpu_s is None else 1000 * self.cpu_s / self.recorder.images

    def figures(self, what: str) -> dict[str, float]:
        """Rate, latencies, CPU time and memory, for records.

        `what` is measured, for errors; its processes are on this machine.

        Raises:
            EmbeddingError: a request failed, or none was answered.
        """
        recorder = self.recorder
        if recorder.failed or not recorder.images:
            said = "; ".join(recorder.examples.values()) or "no answer"
            raise EmbeddingError(f"{what}: {said}")
        assert self.cpu_ms is not None
        assert self.memory_mb is not None
        return {
            "images_per_s": self.images_per_s,
            "p50_ms": recorder.latencies.percentile_ms(50),
            "p99_ms": recorder.latencies.percentile_ms(99),
            "cpu_ms": self.cpu_ms,
            "memory_mb": self.memory_mb,
        }


async def costed_loop(
    tree: ProcessTree | None, request: Request, users: int, seconds: float
) -> Costed:
    """`closed_loop`, with what the processes of `tree` use meanwhile."""
    before, began = tree.usage() if tree else None, time.perf_counter()
    recorder = await closed_loop(request, users, seconds)
    took = time.perf_counter() - began
    if tree is None or before is None:
        return Costed(recorder, took, None, None)
    after = tree.usage()
    return Costed(recorder, took, sum(after.cpu_since(before).values()), after.memory_mb)
