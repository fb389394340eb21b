"""What the server itself says and uses while it is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unified_embedding.client import EmbedderClient, StageStatistics
from unified_embedding.measure.processes import ProcessTree, Usage
from unified_embedding.measure.stages import Breakdown


@dataclass(frozen=True)
class Observed:
    """A server between two moments.

    Attributes:
        before: Triton's statistics at the first moment.
        after: the same at the second one.
        cpu_s: CPU seconds used in between, by part; empty when its processes are elsewhere.
        memory_mb: proportional set size at the start, at the end, and the largest one seen.
    """

    before: Mapping[str, StageStatistics]
    after: Mapping[str, StageStatistics]
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    memory_mb: Mapping[str, float] = field(default_factory=dict)

    def record(self, images: int, seconds: float, service_mean_ms: float) -> dict[str, Any]:
        """As JSON values: stages of a mean request, batches, CPU and memory."""
        stages = Breakdown.between(self.before, self.after, service_mean_ms)
        record: dict[str, Any] = {
            "stages_ms": {stage.name: stage.mean_ms for stage in stages.stages},
            "mean_batch": dict(stages.mean_batch),
            "failures": dict(stages.failures),
        }
        if self.cpu_s:
            whole = sum(self.cpu_s.values())
            record["cpu_ms_per_image"] = 1000 * whole / images if images else None
            record["cpu_ms_per_image_by_process"] = {
                part: 1000 * used / images for part, used in self.cpu_s.items() if images
            }
            record["cores_busy"] = whole / seconds if seconds else None
            record["memory_mb"] = dict(self.memory_mb)
        return record


class ServerWatch:
    """Reads a server's statistics and, on its own machine, its processes' CPU and memory."""

    def __init__(self, client: EmbedderClient, tree: ProcessTree | None) -> None:
        self._client = client
        self._tree = tree
        self._before: dict[str, StageStatistics] = {}
        self._start = self._peak = Usage()

    def begin(self) -> None:
        """The measured window starts. Raises ClientError when the server does not answer."""
        self._before = self._client.statistics()
        self._start = self._peak = self._tree.usage() if self._tree else Usage()

    def sample(self) -> None:
        """Look at the memory in between; call it every second or so."""
        if self._tree:
            now = self._tree.usage()
            if now.memory_mb > self._peak.memory_mb:
                self._peak = now

    def end(self) -> Observed:
        """The measured window has ended. Raises ClientError as `begin`."""
        after = self._client.statistics()
        if self._tree is None:
            return Observed(self._before, after)
        usage = self._tree.usage()
        return Observed(
            before=self._before,
            after=after,
            cpu_s=usage.cpu_since(self._start),
            memory_mb={
                "start": self._start.memory_mb,
                "end": usage.memory_mb,
                "peak": max(usage.memory_mb, self._peak.memory_mb),
            },
        )
