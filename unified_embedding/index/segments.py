"""The two halves of an index: a memory-mapped base that never changes and a tail that grows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unified_embedding.codes import code_bytes
from unified_embedding.errors import CodeIndexError
from unified_embedding.index.accelerator import Accelerator
from unified_embedding.index.header import Header

CODES: Final = "codes.u8"
EMBEDDINGS: Final = "embeddings.f16"
METADATA: Final = "metadata.arrow"
ORDER: Final = "id-order.i64"
ACCELERATOR: Final = "accelerator.faiss"
ID: Final = "id"

Record = dict[str, Any]

_FIRST_CAPACITY: Final = 1024
# Above this many ids one hash join is faster than a binary search each.
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
    records: "Sequence[Record] | Table"
    accelerator: Accelerator | None = None

    def __len__(self) -> int:
        return len(self.codes)


class Table:
    """Rows of a memory-mapped Arrow table as dictionaries, without reading the rest."""

    def __init__(self, table: pa.Table) -> None:
        self.arrow = table

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __getitem__(self, row: int) -> Record:
        return {
            name: column[row].as_py()
            for name, column in zip(self.arrow.column_names, self.arrow.columns, strict=True)
        }


class Base:
    """The saved rows, memory-mapped: codes, metadata, ids in sorted order."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Map the files of `header`'s generation.

        Raises:
            CodeIndexError: a file is damaged.
            FileNotFoundError: a file is gone, perhaps because a save has just replaced it.
        """
        rows, width = header.rows, code_bytes(header.dim)
        self.codes = _mapped(header.file(folder, CODES), np.uint8, (rows, width))
        self.embeddings = (
            _mapped(header.file(folder, EMBEDDINGS), np.float16, (rows, header.dim))
            if header.embeddings
            else None
        )
        self.records = Table(_read_table(header.file(folder, METADATA), rows))
        self._order = _mapped(header.file(folder, ORDER), np.int64, (rows,))
        self.accelerator = None
        if header.settings.kind != "flat" and rows:
            path = header.file(folder, ACCELERATOR)
            path.stat()  # FAISS reports a missing file as a RuntimeError without its name.
            self.accelerator = Accelerator.read(path, header.settings)
            if self.accelerator.rows != rows:
                raise CodeIndexError(f"{path} holds {self.accelerator.rows:,} rows, not {rows:,}")
        self.alive = np.ones(rows, dtype=np.bool_)
        self.dead = 0

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
            column = self.records.arrow.column(ID).combine_chunks()
            found = pc.index_in(pa.array(ids, pa.string()), value_set=column)
            rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        else:
            rows = np.array([self._find(name) for name in ids], dtype=np.int64)
        return np.where((rows >= 0) & self.alive[rows], rows, -1) if len(self.codes) else rows

    def kill(self, rows: NDArray[np.int64]) -> None:
        """Mark living rows as deleted."""
        self.alive[rows] = False
        self.dead += len(rows)

    def _find(self, name: str) -> int:
        if not len(self.codes):
            return -1
        column = self.records.arrow.column(ID)
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            if column[int(self._order[middle])].as_py() < name:
                low = middle + 1
            else:
                high = middle
        if low == len(self._order):
            return -1
        row = int(self._order[low])
        return row if column[row].as_py() == name else -1


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
        self.records: list[Record] = []
        self.schema: pa.Schema | None = None
        self.row_of: dict[str, int] = {}

    def part(self) -> Part:
        """The segment for one search; the count is read first, the arrays hold at least it."""
        count, dead = self.count, self.dead
        embeddings = None if self.embeddings is None else self.embeddings[:count]
        return Part(self.codes[:count], embeddings, self.alive[:count], dead, self.records)

    def append(
        self,
        codes: NDArray[np.uint8],
        embeddings: NDArray[np.float16] | None,
        records: Sequence[Record],
        schema: pa.Schema,
    ) -> None:
        """Add rows; the caller has checked shapes, columns and ids."""
        start, end = self.count, self.count + len(codes)
        self._reserve(end)
        self.schema = schema
        self.codes[start:end] = codes
        if self.embeddings is not None and embeddings is not None:
            self.embeddings[start:end] = embeddings
        self.records.extend(records)
        self.count = end
        # Last, so that whoever finds an id here finds its row in a snapshot made after.
        self.row_of.update((record[ID], start + row) for row, record in enumerate(records))

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
        if len(rows) and self.schema is not None:
            embeddings = None if self.embeddings is None else self.embeddings[rows]
            records = [self.records[row] for row in rows]
            rest.append(self.codes[rows], embeddings, records, self.schema)
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
        CodeIndexError: a column named "id", columns of another length, an id that is empty,
            not text or given twice.
    """
    for name in ids:
        if not isinstance(name, str) or not name:
            raise CodeIndexError(f"id {name!r} is not a non-empty text")
    if len(set(ids)) != len(ids):
        twice = next(name for row, name in enumerate(ids) if name in ids[:row])
        raise CodeIndexError(f"id {twice!r} is given twice")
    table = metadata if isinstance(metadata, pa.Table) else pa.table(dict(metadata or {}))
    if ID in table.column_names:
        raise CodeIndexError("metadata has a column 'id'; pass ids apart and name it otherwise")
    if table.num_columns and table.num_rows != len(ids):
        raise CodeIndexError(f"{table.num_rows} rows of metadata for {len(ids)} ids")
    columns = [pa.array(ids, pa.string()), *table.columns]
    return pa.table(columns, names=[ID, *table.column_names])


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


def _grown(array: NDArray[Any], capacity: int) -> NDArray[Any]:
    larger = np.empty((capacity, *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    size = path.stat().st_size
    if size != wanted:
        raise CodeIndexError(
            f"{path} has {size:,} bytes where {wanted:,} belong; build the index again"
        )
    if not wanted:
        return np.empty(shape, dtype=dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))


def _read_table(path: Path, rows: int) -> pa.Table:
    path.stat()  # Arrow's FileNotFoundError does not carry the name.
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise CodeIndexError(f"{path} is damaged ({error}); build the index again") from error
    if table.num_rows != rows:
        raise CodeIndexError(f"{path} holds {table.num_rows:,} rows, not {rows:,}")
    return table
