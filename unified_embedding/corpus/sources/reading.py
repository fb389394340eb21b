"""Pictures read again: what an `Item` says becomes bytes, or a reason."""

import bisect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow.parquet as pq

from unified_embedding.corpus.places import is_uri, local_path, open_regular, reason, too_large
from unified_embedding.corpus.sources.column import ColumnReader, open_parquet
from unified_embedding.corpus.sources.item import LISTED, PARQUET, TAR, Item
from unified_embedding.errors import DamagedRows, StoreError
from unified_embedding.image import DEFAULT_LIMITS


@dataclass(frozen=True)
class Unreadable:
    """Why a picture could not be read."""

    reason: str


class Reader:
    """Reads the pictures of items. A picture larger than the limit is refused before it is read.

    Rows of Parquet come from one stream for each row group, which goes on from call to call:
    items that are asked for in the order of their rows cost one reading of the file.
    """

    def __init__(self, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> None:
        self._max_bytes = max_bytes
        self._table: _OpenTable | None = None

    def chunks(
        self, items: Sequence[Item], size: int
    ) -> Iterator[tuple[Sequence[Item], Callable[[], list[bytes | Unreadable]]]]:
        """The items `size` at a time, in order, each with a call that gives their contents.

        The iterator itself is for one thread and reads rows of Parquet; the calls may run on
        others, and read files and members of tars.
        """
        for first in range(0, len(items), size):
            chunk = items[first : first + size]
            rows = {
                place: self._row(item)
                for place, item in enumerate(chunk)
                if item.kind == PARQUET and not item.problem
            }
            yield chunk, partial(self._contents, chunk, rows)

    def read(self, items: Sequence[Item]) -> list[bytes | Unreadable]:
        """The contents of a few items."""
        return [one for _, call in self.chunks(items, max(1, len(items))) for one in call()]

    def close(self) -> None:
        """Close the Parquet file that is open."""
        if self._table:
            self._table.close()
            self._table = None

    def _contents(
        self, items: Sequence[Item], rows: dict[int, bytes | Unreadable]
    ) -> list[bytes | Unreadable]:
        return [
            Unreadable(item.problem)
            if item.problem
            else rows[place]
            if place in rows
            else self._file(item)
            for place, item in enumerate(items)
        ]

    def _file(self, item: Item) -> bytes | Unreadable:
        try:
            if item.kind == LISTED and not is_uri(item.place):
                path = local_path(item.place)
                if os.path.realpath(path) != path:
                    return Unreadable("cannot be read (a link leads there now)")
            file, there = open_regular(item.place)
            with file:
                size = item.size if item.kind == TAR else there
                if size > self._max_bytes:
                    return self._too_large(size)
                file.seek(item.offset)
                # One more than there should be: a file that grows is refused too.
                data = file.read(size if item.kind == TAR else self._max_bytes + 1)
        except (OSError, ValueError, StoreError) as error:
            return Unreadable(f"cannot be read ({reason(error)})")
        if len(data) > self._max_bytes:
            return self._too_large(len(data))
        if len(data) < size:
            return Unreadable("cannot be read (its file ends before it does)")
        return data

    def _row(self, item: Item) -> bytes | Unreadable:
        if self._table is None or self._table.place != item.place:
            self.close()
            self._table = _OpenTable(item.place)
        return self._table.row(item.offset, item.column, self._max_bytes, self._too_large)

    def _too_large(self, size: int) -> Unreadable:
        return Unreadable(too_large(size, self._max_bytes))


class _OpenTable:
    """A Parquet file, and the stream of the row group that was read last."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._file: pq.ParquetFile | None = None
        self._problem = ""
        self._ends: list[int] = []
        self._group, self._column = -1, ""
        self._stream: ColumnReader | None = None
        self._lost: dict[tuple[int, str], tuple[int, str]] = {}
        try:
            self._file = open_parquet(place)
            facts = self._file.metadata
            counts = (facts.row_group(group).num_rows for group in range(facts.num_row_groups))
            self._ends = list(itertools.accumulate(counts))
        # Whatever Arrow meets in a file that was changed since it was found.
        except Exception as error:
            self._problem = f"cannot be read ({reason(error)})"

    def row(
        self, row: int, column: str, limit: int, too_large: Callable[[int], Unreadable]
    ) -> bytes | Unreadable:
        """The bytes in one row. Rows are to be asked for in ascending order."""
        if self._file is None:
            return Unreadable(self._problem)
        if row >= (self._ends[-1] if self._ends else 0):
            return Unreadable("cannot be read (the table has fewer rows now)")
        group = bisect.bisect_right(self._ends, row)
        inside = row - (self._ends[group - 1] if group else 0)
        start, why = self._lost.get((group, column), (inside + 1, ""))
        if inside >= start:
            return Unreadable(f"cannot be read ({why})")
        facts = self._file.metadata.row_group(group)
        # Of all columns; statistics may hold the value twice more.
        if facts.num_rows == 1 and facts.total_byte_size > 4 * limit + 65_536:
            return too_large(facts.total_byte_size)
        try:
            stream = self._stream
            if (
                stream is None
                or (self._group, self._column) != (group, column)
                or stream.at > inside
            ):
                stream = ColumnReader(self._file, group, column)
                self._stream, self._group, self._column = stream, group, column
            stream.skip(inside - stream.at)
            value = stream.take(1)[0].as_py()
        except DamagedRows as error:
            self._lost[group, column] = (stream.at if stream else 0, str(error))
            return Unreadable(f"cannot be read ({error})")
        # A plan may name a column that is no longer there.
        except Exception as error:
            return Unreadable(f"cannot be read ({reason(error)})")
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            return Unreadable("the row holds no picture (null)")
        if not isinstance(value, bytes):
            return Unreadable("cannot be read (the column no longer holds bytes)")
        return too_large(len(value)) if len(value) > limit else value

    def close(self) -> None:
        if self._file is not None:
            self._file.close(force=True)
