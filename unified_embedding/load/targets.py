"""What the measured ratios should be: every target of the benchmarks, in one table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from unified_embedding.measure.paired import Target, at_least, at_most


@dataclass(frozen=True)
class Serving:
    """Targets of `make bench` for one embedder, each a ratio of our server to another system.

    Attributes:
        cpu_32, cpu_16, cpu_1: CPU time for a picture over the roofline's; 32 callers, 16
            pictures a request, one caller.
        litserve_rate: images/s of 32 callers over LitServe's at its best.
        litserve_p50: median latency of one caller over LitServe's at its best.
        litserve_poisson: highest Poisson rate within the objective over LitServe's.
        torch_rate: images/s of 32 callers over FastAPI + torch fp32.
    """

    cpu_32: Target
    cpu_16: Target
    cpu_1: Target
    litserve_rate: Target
    litserve_p50: Target
    litserve_poisson: Target
    torch_rate: Target


_LARGE: Final = Serving(
    cpu_32=at_most(1.03),
    cpu_16=at_most(1.02),
    cpu_1=at_most(1.12),
    litserve_rate=at_least(1.02),
    litserve_p50=at_most(0.9),
    litserve_poisson=at_least(1.05),
    torch_rate=at_least(3),
)
SERVING: Final[Mapping[str, Serving]] = {
    "Lite0": Serving(
        cpu_32=at_most(1.08),
        cpu_16=at_most(1.04),
        cpu_1=at_most(1.3),
        litserve_rate=at_least(1.15),
        litserve_p50=at_most(0.85),
        litserve_poisson=at_least(1.3),
        torch_rate=at_least(5),
    ),
    "SE-ResNeXt101": _LARGE,
    "SE-ResNeXt101 int8": _LARGE,
}
"""By the embedder's name."""

OVERLOAD: Final[Mapping[float, Target]] = {2.0: at_least(0.85), 3.0: at_least(0.85)}
"""`make capacity`: answered within a second, of the closed loop's maximum, when so many times the
maximum is offered."""

SEARCH: Final[Mapping[int, Target]] = {32: at_least(0.95)}
"""`make growth`: searches/s of so many threads over bare FAISS' with as many."""

API_RATE: Final[Mapping[tuple[int, int], Target]] = {
    (32, 1): at_least(0.8),
    (8, 16): at_least(0.9),
}
"""`make bench-api`: images/s of the HTTP API over gRPC's, by connections and pictures a request."""
API_MORE_MS: Final = at_most(1.5)
"""`make bench-api`: milliseconds that one caller waits longer than by gRPC, median."""

FASTER: Final = at_least(1.02)
"""`make tune`: images/s of 32 callers over what is installed; two equal servers differ by 2 %."""
NOT_SLOWER: Final = at_most(1.02)
"""`make tune`: a single caller's median latency over what is installed."""
