"""One column of one Parquet row group, read once from front to back in bounded memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow.parquet as pq

from unified_embedding.corpus.places import open_for_arrow
from unified_embedding.errors import DamagedRows

_BATCH_BYTES: Final = 4_000_000
_MAX_BATCH_ROWS: Final = 4096
_READ_BYTES: Final = 1 << 20
_UNKNOWN_ROW_BYTES: Final = 100_000


def open_parquet(place: str) -> pq.ParquetFile:
    """A Parquet file whose columns are read piece by piece.

    Raises:
        OSError, pa.ArrowException, StoreError: it cannot be read.
    """
    file = open_for_arrow(place)
    try:
        # Without a buffer size, a whole column of a row group is read at once.
        return pq.ParquetFile(
            file,
            pre_buffer=False,
            buffer_size=_READ_BYTES,
            page_checksum_verification=True,
        )
    except BaseException:
        file.close()
        raise


@contextmanager
def closing_parquet(file: pq.ParquetFile) -> Iterator[None]:
    """Close the file at the end of the block; pyarrow alone leaves it open."""
    try:
        yield
    finally:
        file.close(force=True)


class ColumnReader:
    """The values of a column in order, and where the damage begins if there is some.

    A damaged page ends the column, since Arrow finds a page only behind the one before.
    """

    def __init__(self, file: pq.ParquetFile, group: int, column: str) -> None:
        self._file, self._group, self._column = file, group, column
        facts = file.metadata.row_group(group)
        self.rows: int = facts.num_rows
        self.at = 0
        # Of all columns. The size of one alone stands in its chunk's metadata, and pyarrow ends
        # the process at `RowGroupMetaData.column` when that is damaged.
        size = facts.total_byte_size
        average = size // max(1, self.rows) if size > 0 else _UNKNOWN_ROW_BYTES
        self._batch_rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(1, average)))
        self._batches: Any = None
        self._held: Any = None

    def skip(self, rows: int) -> None:
        """Go `rows` further. Raises DamagedRows."""
        while rows:
            rows -= len(self._next(rows))

    def take(self, rows: int) -> Any:
        """The next values, at least one and at most `rows`, as an Arrow array.

        Raises:
            DamagedRows: the next one cannot be read.
        """
        return self._next(rows)

    def _next(self, rows: int) -> Any:
        if self._held is None or not len(self._held):
            self._held = self._read()
        piece, self._held = self._held[:rows], self._held[rows:]
        self.at += len(piece)
        return piece

    def _read(self) -> Any:
        if self.at >= self.rows:
            raise DamagedRows("the row group ends before this row")
        try:
            if self._batches is None:
                self._batches = self._from_start(self._batch_rows)
            return self._one()
        except StopIteration:
            raise DamagedRows("the row group ends before this row") from None
        # Damaged pages raise whatever Arrow meets in them.
        except Exception as error:
            if self._batch_rows == 1:
                raise DamagedRows(_told(error)) from error
        # Once more in single rows, to lose none that stands before the damage.
        self._batch_rows = 1
        try:
            self._batches = self._from_start(1)
            for _ in range(self.at):
                self._one()
        except Exception as error:
            self._batches = iter(())
            raise DamagedRows(_told(error)) from error
        return self._read()

    def _from_start(self, rows: int) -> Any:
        return self._file.iter_batches(
            batch_size=rows, row_groups=[self._group], columns=[self._column], use_threads=False
        )

    def _one(self) -> Any:
        while True:
            batch = next(self._batches)
            if batch.num_rows:
                return batch.column(0)


def _told(error: Exception) -> str:
    # Arrow's own words are about the file's format, and may hold bytes of it.
    return getattr(error, "strerror", None) or "the Parquet column is damaged here or before it"
