"""Latency distributions with exact tails: HdrHistogram, three digits from 1 us to one hour."""

from typing import Final, Self

from hdrh.histogram import HdrHistogram

PERCENTILES: Final = (50.0, 90.0, 95.0, 99.0, 99.9)
_LONGEST_US: Final = 3_600_000_000


class Latencies:
    """A distribution of durations. Two of them can be added; none forgets its slowest value."""

    def __init__(self, digits: int = 3) -> None:
        """`digits` decimal digits of every value are kept."""
        self._histogram = HdrHistogram(1, _LONGEST_US, digits)
        self._total_us = 0
        self._longest_us = 0

    def record(self, seconds: float) -> None:
        """Add one duration."""
        microseconds = min(_LONGEST_US, max(1, round(seconds * 1e6)))
        self._histogram.record_value(microseconds)
        self._total_us += microseconds
        self._longest_us = max(self._longest_us, microseconds)

    def add(self, other: "Latencies") -> None:
        """Add every duration of `other`, of the same number of digits."""
        self._histogram.add(other._histogram)
        self._total_us += other._total_us
        self._longest_us = max(self._longest_us, other._longest_us)

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    @property
    def mean_ms(self) -> float:
        """Arithmetic mean in milliseconds; 0 when empty."""
        return self._total_us / len(self) / 1000 if len(self) else 0.0

    @property
    def longest_ms(self) -> float:
        """The slowest one in milliseconds, exactly; 0 when empty."""
        return self._longest_us / 1000

    def percentile_ms(self, percentile: float) -> float:
        """Milliseconds within which `percentile` % of the requests were answered; 0 when empty."""
        if not len(self):
            return 0.0
        value = int(self._histogram.get_value_at_percentile(percentile))
        return min(value, self._longest_us) / 1000

    def share_within(self, seconds: float) -> float:
        """Share of the durations that are at most `seconds`, to the histogram's digits."""
        limit = round(seconds * 1e6)
        buckets = self._histogram
        within = sum(
            buckets.get_count_at_index(index)
            for index in range(buckets.counts_len)
            if buckets.get_value_from_index(index) <= limit
        )
        return within / len(self) if len(self) else 0.0

    def summary(self) -> dict[str, float]:
        """count, mean, the usual percentiles and max, in milliseconds."""
        tails = {f"p{p:g}": self.percentile_ms(p) for p in PERCENTILES}
        return {"count": len(self), "mean": self.mean_ms, **tails, "max": self.longest_ms}

    def encode(self) -> dict[str, str | int]:
        """The whole distribution as JSON values (HdrHistogram's own V2 encoding)."""
        return {
            "histogram": self._histogram.encode().decode("ascii"),
            "total_us": self._total_us,
            "longest_us": self._longest_us,
        }

    @classmethod
    def decode(cls, raw: dict[str, str | int]) -> Self:
        """The inverse of `encode`."""
        decoded = HdrHistogram.decode(str(raw["histogram"]))
        # A decoded histogram may be cut off after its largest value and takes no larger one.
        latencies = cls(decoded.significant_figures)
        latencies._histogram.add(decoded)
        latencies._total_us = int(raw["total_us"])
        latencies._longest_us = int(raw["longest_us"])
        return latencies
