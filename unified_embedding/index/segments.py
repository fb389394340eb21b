"""The two halves of an index: a memory-mapped base that never changes and a tail that grows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unified_embedding.codes import code_bytes
from unified_embedding.errors import CodeIndexError, shown
from unified_embedding.index import checksums
from unified_embedding.index.accelerator import Accelerator
from unified_embedding.index.checksums import REMEDY
from unified_embedding.index.groups import Groups
from unified_embedding.index.header import Header
from unified_embedding.index.records import ID, Table

CODES: Final = "codes.u8"
EMBEDDINGS: Final = "embeddings.f16"
METADATA: Final = "metadata.arrow"
ORDER: Final = "id-order.i64"
ACCELERATOR: Final = "accelerator.faiss"
GROUP_ROWS: Final = "group-rows.i64"
GROUP_STARTS: Final = "group-starts.i64"

# Up to this size codes and embeddings are checked when an index is opened, about a second a
# gigabyte; the files that are parsed always are, because damage there could end the process.
CHECKED_BYTES: Final = 256 << 20
_PLAIN: Final = (CODES, EMBEDDINGS)

_FIRST_CAPACITY: Final = 1024
# Above this many ids one pass over the column is faster than a binary search each.
_JOIN: Final = 1000


@dataclass(frozen=True)
class Part:
    """One segment as a search sees it: additions after its making are not in it.

    Attributes:
        codes: uint8 [M, B].
        embeddings: float16 [M, D], or None.
        alive: bool [M], False where a row was deleted; a delete shows at once.
        dead: rows that were deleted when the part was made.
        records: row number to metadata.
        accelerator: approximate structure over the rows, or None for exact search.
    """

    codes: NDArray[np.uint8]
    embeddings: NDArray[np.float16] | None
    alive: NDArray[np.bool_]
    dead: int
    records: Table
    accelerator: Accelerator | None = None

    def __len__(self) -> int:
        return len(self.codes)


class Base:
    """The saved rows, memory-mapped: codes, metadata, ids in sorted order."""

    def __init__(self, folder: Path, header: Header, check: bool | None = None) -> None:
        """Map the files of `header`'s generation.

        Args:
            folder: the index.
            header: its header.
            check: compare every file with its SHA-256 in the header (True), none (False), or
                all but codes and embeddings of more than `CHECKED_BYTES` (None).

        Raises:
            CodeIndexError: a file is damaged.
            OSError: a file is gone, perhaps because a save has just replaced it.
        """
        self._folder, self._header = folder, header
        self._unchecked = [
            name
            for name, file in header.files.items()
            if check is False or (not check and name in _PLAIN and file.size > CHECKED_BYTES)
        ]
        for name, file in header.files.items():
            if name not in self._unchecked:
                checksums.check(header.file(folder, name), file)
        rows, width = header.rows, code_bytes(header.dim)
        self.codes = _mapped(header.file(folder, CODES), np.uint8, (rows, width))
        self.embeddings = (
            _mapped(header.file(folder, EMBEDDINGS), np.float16, (rows, header.dim))
            if header.embeddings
            else None
        )
        self.records = Table(_read_table(header.file(folder, METADATA), rows))
        self._order = _mapped(header.file(folder, ORDER), np.int64, (rows,))
        self.accelerator = self._read_accelerator() if header.settings.kind != "flat" else None
        self.alive = np.ones(rows, dtype=np.bool_)
        self.dead = 0

    def check(self) -> None:
        """Compare the files that were left out when the base was opened. Raises as `__init__`."""
        while self._unchecked:
            name = self._unchecked[-1]
            checksums.check(self._header.file(self._folder, name), self._header.files[name])
            self._unchecked.pop()

    @property
    def schema(self) -> pa.Schema | None:
        """Columns of the metadata, id first; None while there is no row."""
        return self.records.arrow.schema if len(self.records) else None

    def part(self) -> Part:
        """The segment for one search."""
        return Part(
            self.codes, self.embeddings, self.alive, self.dead, self.records, self.accelerator
        )

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Row of each id, or -1 where it is absent or deleted; int64 [len(ids)]."""
        if len(ids) > _JOIN:
            rows = self._join(ids)
        else:
            rows = np.array([self._find(name) for name in ids], dtype=np.int64)
        return np.where((rows >= 0) & self.alive[rows], rows, -1) if len(self.codes) else rows

    def kill(self, rows: NDArray[np.int64]) -> None:
        """Mark living rows as deleted."""
        self.alive[rows] = False
        self.dead += len(rows)

    def _find(self, name: str) -> int:
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            if self._id(middle) < name:
                low = middle + 1
            else:
                high = middle
        found = low < len(self._order) and self._id(low) == name
        return int(self._order[low]) if found else -1

    def _id(self, place: int) -> str:
        """The id at a place of the sorted order."""
        row = int(self._order[place])
        if not 0 <= row < len(self.records):
            path = self._header.file(self._folder, ORDER)
            raise CodeIndexError(f"{path} is damaged (it names row {row:,}); {REMEDY}")
        return self.records.id(row)

    def _join(self, ids: Sequence[str]) -> NDArray[np.int64]:
        # Bytes in 64-bit offsets: ids of more than 2 GB have no other Arrow array, and bytes
        # take texts that are no UTF-8.
        place = {name: number for number, name in enumerate(dict.fromkeys(ids))}
        wanted = pa.array([name.encode("utf-8", "surrogatepass") for name in place], _BYTES)
        rows = np.full(len(place), -1, dtype=np.int64)
        first = 0
        for chunk in self.records.arrow.column(ID).chunks:
            found = pc.index_in(chunk.cast(_BYTES), value_set=wanted)
            there = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
            rows[found.drop_null().to_numpy()] = first + there
            first += len(chunk)
        return rows[[place[name] for name in ids]]

    def _read_accelerator(self) -> Accelerator | None:
        header, folder = self._header, self._folder
        if not header.rows:
            return None
        path = header.file(folder, ACCELERATOR)
        path.stat()  # FAISS reports a missing file as a RuntimeError without its name.
        read = Accelerator.read(path, header.settings)
        if GROUP_ROWS in header.files:
            rows = _mapped(header.file(folder, GROUP_ROWS), np.int64, (header.rows,))
            starts = _mapped(header.file(folder, GROUP_STARTS), np.int64, (read.codes + 1,))
            read.groups = Groups(rows, starts)
        elif read.codes != header.rows:
            raise CodeIndexError(f"{path} holds {read.codes:,} rows, not {header.rows:,}; {REMEDY}")
        return read


class Tail:
    """Rows added since the last save, in arrays that double when full.

    One writer appends at a time; searches need no lock, because an array is never moved or
    overwritten below the count that a reader has seen.
    """

    def __init__(self, dim: int, embeddings: bool) -> None:
        self._dim = dim
        self.count = 0
        self.codes = np.empty((_FIRST_CAPACITY, code_bytes(dim)), dtype=np.uint8)
        self.embeddings = np.empty((_FIRST_CAPACITY, dim), np.float16) if embeddings else None
        self.alive = np.ones(_FIRST_CAPACITY, dtype=np.bool_)
        self.dead = 0
        # Any other way to an empty table imports pandas, half a second and 30 MB.
        self.records = Table(pa.Table.from_batches([], pa.schema([(ID, pa.string())])))
        self._pieces: list[pa.Table] = []
        self.row_of: dict[str, int] = {}

    @property
    def schema(self) -> pa.Schema | None:
        """Columns of the metadata, id first; None while there is no row."""
        return self._pieces[0].schema if self._pieces else None

    def part(self) -> Part:
        """The segment for one search; the count is read first, the arrays hold at least it."""
        count, dead = self.count, self.dead
        embeddings = None if self.embeddings is None else self.embeddings[:count]
        return Part(self.codes[:count], embeddings, self.alive[:count], dead, self.records)

    def append(
        self, codes: NDArray[np.uint8], embeddings: NDArray[np.float16] | None, table: pa.Table
    ) -> None:
        """Add rows; the caller has checked shapes, columns and ids."""
        start, end = self.count, self.count + len(codes)
        self._reserve(end)
        self.codes[start:end] = codes
        if self.embeddings is not None and embeddings is not None:
            self.embeddings[start:end] = embeddings
        self._pieces = _merged([*self._pieces, table])
        self.records = Table(pa.concat_tables(self._pieces))
        self.count = end
        # Last, so that whoever finds an id here finds its row in a snapshot made after.
        ids = table.column(ID).to_pylist()
        self.row_of.update((name, start + row) for row, name in enumerate(ids))

    def kill(self, ids: Sequence[str]) -> int:
        """Delete those of `ids` that are here; returns how many were."""
        rows = [row for name in ids if (row := self.row_of.pop(name, None)) is not None]
        self.alive[rows] = False
        self.dead += len(rows)
        return len(rows)

    def after(self, count: int) -> "Tail":
        """A tail of the living rows from `count` on."""
        rest = Tail(self._dim, self.embeddings is not None)
        rows = count + np.flatnonzero(self.alive[count : self.count])
        if len(rows):
            embeddings = None if self.embeddings is None else self.embeddings[rows]
            living = self.records.living(self.alive[: self.count], count)
            rest.append(self.codes[rows], embeddings, living)
        return rest

    def _reserve(self, rows: int) -> None:
        capacity = len(self.codes)
        if rows <= capacity:
            return
        while capacity < rows:
            capacity *= 2
        self.codes = _grown(self.codes, capacity)
        if self.embeddings is not None:
            self.embeddings = _grown(self.embeddings, capacity)
        alive = np.ones(capacity, dtype=np.bool_)
        alive[: self.count] = self.alive[: self.count]
        self.alive = alive


def as_records(
    ids: Sequence[str], metadata: Mapping[str, Sequence[Any]] | pa.Table | None
) -> pa.Table:
    """One table of ids and metadata, the id first.

    Raises:
        CodeIndexError: a column named "id", columns of another length or of values that Arrow
            cannot hold, an id that is empty, not a Unicode text or given twice.
    """
    for name in ids:
        if not isinstance(name, str) or not name:
            raise CodeIndexError(f"id {shown(name)} is not a non-empty text")
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise CodeIndexError(f"id {shown(twice)} is given twice")
    try:
        table = metadata if isinstance(metadata, pa.Table) else pa.table(dict(metadata or {}))
        if ID in table.column_names:
            raise CodeIndexError("metadata has a column 'id'; pass ids apart and name it otherwise")
        if table.num_columns and table.num_rows != len(ids):
            raise CodeIndexError(f"{table.num_rows} rows of metadata for {len(ids)} ids")
        columns = [pa.array(ids, pa.string()), *map(_plain, table.columns)]
        return pa.table(columns, names=[ID, *table.column_names])
    except UnicodeEncodeError as error:
        raise CodeIndexError(
            f"{shown(error.object)} is not Unicode text ({error.reason}); ids and metadata must "
            "be writable as UTF-8"
        ) from error
    except (pa.ArrowException, OverflowError) as error:
        raise CodeIndexError(f"metadata cannot be stored ({error})") from error


def cast_to(table: pa.Table, schema: pa.Schema | None) -> pa.Table:
    """`table` with the columns of `schema`. Raises CodeIndexError where they do not fit."""
    if schema is None:
        return table
    if set(table.column_names) != set(schema.names):
        raise CodeIndexError(
            f"metadata has the columns {table.column_names[1:]}; the index has {schema.names[1:]}"
        )
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise CodeIndexError(f"metadata does not fit the index's columns: {error}") from error


_BYTES: Final = pa.large_binary()


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # A file of Arrow batches holds one dictionary a column; batches of a table bring several.
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _merged(pieces: list[pa.Table]) -> list[pa.Table]:
    """Few pieces however many additions: a piece swallows its neighbour that is not larger."""
    while len(pieces) > 1 and pieces[-2].num_rows <= pieces[-1].num_rows:
        pieces[-2:] = [pa.concat_tables(pieces[-2:]).combine_chunks()]
    return pieces


def _grown(array: NDArray[Any], capacity: int) -> NDArray[Any]:
    larger = np.empty((capacity, *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    checksums.check_size(path, size)
    if not size:
        return np.empty(shape, dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))


def _read_table(path: Path, rows: int) -> pa.Table:
    path.stat()  # Arrow's FileNotFoundError does not carry the name.
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise CodeIndexError(f"{path} is damaged ({error}); {REMEDY}") from error
    if table.num_rows != rows or table.schema.names[0] != ID:
        raise CodeIndexError(f"{path} holds {table.num_rows:,} rows, not {rows:,}; {REMEDY}")
    return table
