"""Admission: how much work may be under way, and until when an answer is of use."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from unified_embedding.api.problems import ApiError

DEADLINE_HEADERS: Final = ("x-request-timeout", "x-stainless-read-timeout", "x-stainless-timeout")
"""Seconds that the caller waits: ours, and what openai-python and openai-node send themselves."""


class Gate:
    """Bounds the pictures in work.

    What is admitted carries its deadline to the embedding server, which refuses in time what it
    cannot answer in time; both are 429.
    """

    def __init__(self, most: int) -> None:
        """`most` pictures may be in work at a time; a request of more may come alone."""
        self._most = most
        self.in_work = 0

    @contextmanager
    def admit(self, pictures: int) -> Iterator[None]:
        """Hold a place for `pictures`. Raises ApiError (429)."""
        if self.in_work and self.in_work + pictures > self._most:
            raise ApiError(
                429,
                f"{self.in_work:,} pictures are in work already, of at most {self._most:,}; "
                "try again later",
                "overloaded",
                kind="rate_limit_error",
            )
        self.in_work += pictures
        try:
            yield
        finally:
            self.in_work -= pictures


def timeout_of(headers: Mapping[str, str], longest: float) -> float:
    """Seconds until the caller needs the answer, at most `longest`.

    Raises:
        ApiError: 400, our own header is not a positive number. What SDKs send instead of a number
            ("NOT_GIVEN") is passed over.
    """
    for name in DEADLINE_HEADERS:
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text)
        except ValueError:
            seconds = float("nan")
        if seconds > 0:
            return min(seconds, longest)
        if name == DEADLINE_HEADERS[0]:
            raise ApiError(
                400,
                f"{name} {text[:80]!r} is not a positive number of seconds",
                "invalid_header",
                name,
            )
    return longest
