"""A list of pictures on its way to the server: checked, split, and saved from bad pictures."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from unified_embedding.client._results import OUTPUTS, Embedded, EmbeddedEach, join
from unified_embedding.client._retry import Retry
from unified_embedding.errors import (
    ClientError,
    RequestRejected,
    ServerDied,
    VersionMismatch,
    shown,
)
from unified_embedding.image import Box

# Large pictures are sent in smaller requests, so that a request stays far below gRPC's limit
# of 2 GiB and the memory in flight stays bounded.
REQUEST_BYTES: Final = 64_000_000

Crops = Box | Sequence[Box | None] | None


@dataclass(frozen=True)
class Job:
    """One call of `embed`: pictures, one crop or None for each, and the outputs wanted."""

    images: Sequence[bytes]
    crops: Sequence[Box | None]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, images: Sequence[bytes], crops: Crops, outputs: Collection[str]) -> "Job":
        """Check the caller's arguments. Raises TypeError or ValueError naming the mistake."""
        if isinstance(images, (bytes, bytearray, memoryview, str)):
            raise TypeError(
                f"expected a sequence of encoded pictures, got one {type(images).__name__}; "
                "write embed([data])"
            )
        for row, image in enumerate(images):
            check_picture(row, image)
        if isinstance(outputs, str) or not outputs or set(outputs) - set(OUTPUTS):
            raise ValueError(f"outputs {shown(outputs)} is not a selection of {OUTPUTS}")
        if crops is None or isinstance(crops, Box):
            crops = [crops] * len(images)
        if len(crops) != len(images):
            raise ValueError(
                f"{len(crops)} crops for {len(images)} pictures; give one Box for all, or a "
                "sequence with one Box or None for each"
            )
        wanted = tuple(name for name in OUTPUTS if name in outputs)
        return cls(images, crops, wanted)

    def split(self, max_batch_size: int) -> list[range]:
        """Rows of each request: at most `max_batch_size` pictures and REQUEST_BYTES bytes.

        A picture that is larger by itself travels alone.
        """
        requests, start, size = [], 0, 0
        for row, image in enumerate(self.images):
            size += len(image)
            if row > start and (row - start == max_batch_size or size > REQUEST_BYTES):
                requests.append(range(start, row))
                start, size = row, len(image)
        if start < len(self.images):
            requests.append(range(start, len(self.images)))
        return requests


def check_picture(row: int, image: object) -> None:
    """Raise TypeError unless a picture is bytes."""
    if not isinstance(image, bytes):
        raise TypeError(
            f"image {row} is {type(image).__name__}, not bytes; "
            "pass encoded pictures, for instance Path(...).read_bytes()"
        )


class Salvage:
    """Brings the good pictures of one request home when others in it fail.

    Take rows, and the death of the server that they were in flight at, from the front of
    `pending`, send them, and report back with `accept` or `fail` until nothing is pending;
    `parts` then holds the good rows in ascending order.
    """

    def __init__(self, rows: Sequence[int], retry: Retry) -> None:
        self.pending: list[tuple[Sequence[int], ServerDied | None]] = [(rows, None)]
        self.parts: list[tuple[Sequence[int], Embedded]] = []
        self.errors: dict[int, ClientError] = {}
        self._repeats = retry.attempts != 1

    def accept(self, rows: Sequence[int], embedded: Embedded) -> None:
        """The request was answered."""
        self.parts.append((rows, embedded))

    def fail(self, rows: Sequence[int], error: ClientError) -> None:
        """The request failed. Raises VersionMismatch, after which nothing can be brought home."""
        if isinstance(error, VersionMismatch):
            raise error
        if isinstance(error, RequestRejected):
            self._refuse(rows, error)
        elif isinstance(error, ServerDied) and len(rows) > 1 and self._repeats:
            # Each alone, so that no more than one picture is blamed when it dies again.
            self.pending[:0] = [([row], error) for row in rows]
        else:
            self.errors.update(dict.fromkeys(rows, error))

    def _refuse(self, rows: Sequence[int], error: RequestRejected) -> None:
        """Send the others again, or if none is named one half after the other."""
        if error.row is None and len(rows) > 1:
            self.pending[:0] = [(half, None) for half in halves(rows)]
            return
        bad = rows[0] if error.row is None else error.row
        self.errors[bad] = RequestRejected(error.reason, bad)
        good = [row for row in rows if row != bad]
        if good:
            self.pending.insert(0, (good, None))


def halves(rows: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The first and the second half of rows that are too much for one request."""
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]


def collect(salvaged: Sequence[Salvage], nothing: Embedded) -> EmbeddedEach:
    """One result from all requests of a list; `nothing` is an answer of zero rows."""
    parts = [part for one in salvaged for part in one.parts]
    embedded = join([embedded for _, embedded in parts]) if parts else nothing
    rows = tuple(row for rows, _ in parts for row in rows)
    errors = {row: error for one in salvaged for row, error in one.errors.items()}
    return EmbeddedEach(embedded, rows, dict(sorted(errors.items())))
