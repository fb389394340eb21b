"""When requests are due in an open-loop test: a Poisson process whose rate follows a profile."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Segment:
    """A stretch of a profile: the rate goes from `first` to `last` requests/s in `seconds`."""

    first: float
    last: float
    seconds: float


@dataclass(frozen=True)
class RateProfile:
    """Arrival rate over time; after its last segment the last rate holds."""

    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "100", steps "50@10,100@10", ramps "10..300@60", and any mix of them.

        A segment is RATE@SECONDS or FROM..TO@SECONDS; the last one may leave out its length.

        Raises:
            ValueError: the text is something else, or no request would ever be due.
        """
        parts = text.split(",")
        segments = tuple(
            _segment(part.strip(), last=number == len(parts))
            for number, part in enumerate(parts, 1)
        )
        if max(segment.last for segment in segments) <= 0 and all(
            segment.first <= 0 for segment in segments
        ):
            raise ValueError(f"rate {text!r} never rises above 0")
        return cls(segments)

    @property
    def peak(self) -> float:
        """The highest rate, requests/s."""
        return max(max(segment.first, segment.last) for segment in self.segments)

    def rate(self, seconds: float) -> float:
        """Requests per second at `seconds` after the start."""
        for segment in self.segments:
            if seconds < segment.seconds:
                share = seconds / segment.seconds if math.isfinite(segment.seconds) else 0.0
                return segment.first + share * (segment.last - segment.first)
            seconds -= segment.seconds
        return self.segments[-1].last

    def arrivals(self, draw: random.Random) -> Iterator[float]:
        """Seconds after the start at which requests are due; ends only if the rate ends at 0.

        Thinning (Lewis and Shedler, 1979): candidates at the peak rate, each kept with
        probability rate / peak, are a Poisson process of exactly the profile's rate.
        """
        end = math.inf if self.segments[-1].last > 0 else sum(s.seconds for s in self.segments)
        peak, now = self.peak, 0.0
        while True:
            now += draw.expovariate(peak)
            if now >= end:
                return
            if draw.random() * peak < self.rate(now):
                yield now


def _segment(text: str, last: bool) -> Segment:
    rates, at, seconds = text.partition("@")
    first, dots, final = rates.partition("..")
    try:
        start = float(first)
        stop = float(final) if dots else start
        length = float(seconds) if at else math.inf
    except ValueError:
        raise ValueError(
            f"rate {text!r} is neither RATE, RATE@SECONDS nor FROM..TO@SECONDS"
        ) from None
    bounded = math.isfinite(start) and math.isfinite(stop) and min(start, stop) >= 0
    if not bounded or not length > 0 or (math.isinf(length) and (at or dots or not last)):
        raise ValueError(
            f"rate {text!r} needs rates >= 0 and a length in seconds > 0 "
            "(only the last segment, if constant, may leave it out)"
        )
    return Segment(start, stop, length)
