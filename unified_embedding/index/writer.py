"""Write one generation of an index; nothing of it is visible before its header is."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unified_embedding.codes import code_bytes
from unified_embedding.errors import CodeIndexError
from unified_embedding.index.accelerator import Accelerator
from unified_embedding.index.header import Header
from unified_embedding.index.segments import ACCELERATOR, CODES, EMBEDDINGS, ID, METADATA, ORDER

Progress = Callable[[str, int], None]
"""Called with the step's name and the rows done so far."""

_EMPTY: Final = pa.schema([(ID, pa.string())])


class Writer:
    """Streams rows into the files of `header`'s generation, then builds what search needs."""

    def __init__(self, folder: Path, header: Header, progress: Progress | None = None) -> None:
        self._folder, self._header, self._progress = folder, header, progress
        self._rows = 0
        self._codes = header.file(folder, CODES).open("wb")
        self._embeddings = header.file(folder, EMBEDDINGS).open("wb") if header.embeddings else None
        self._table: pa.ipc.RecordBatchFileWriter | None = None
        self._ids: list[pa.Array] = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._codes.close()
        if self._embeddings is not None:
            self._embeddings.close()
        if self._table is not None:
            self._table.close()
        if error is not None:
            for path in self._folder.glob(f"{self._header.generation:06d}-*"):
                path.unlink()

    def append(
        self, codes: NDArray[np.uint8], table: pa.Table, embeddings: NDArray[np.float16] | None
    ) -> None:
        """Add checked rows: codes [n, B], their table (id first) and embeddings [n, D] or None."""
        if not len(codes):
            return
        writer = self._table or self._open_table(table.schema)
        np.ascontiguousarray(codes).tofile(self._codes)
        if self._embeddings is not None and embeddings is not None:
            np.ascontiguousarray(embeddings).tofile(self._embeddings)
        writer.write_table(table.combine_chunks())
        self._ids.extend(table.column(ID).chunks)
        self._rows += len(codes)
        self._report("rows")

    def finish(self) -> Header:
        """Sort the ids, build the approximate structure, and return the header to commit.

        Raises:
            CodeIndexError: an id occurs twice.
        """
        (self._table or self._open_table(_EMPTY)).close()
        self._table = None
        self._codes.flush()
        if self._embeddings is not None:
            self._embeddings.flush()
        header = replace(self._header, rows=self._rows)
        self._report("sorting ids")
        self._sorted_ids().tofile(header.file(self._folder, ORDER))
        if header.settings.kind != "flat" and self._rows:
            self._report(f"building {header.settings.kind}")
            shape = (self._rows, code_bytes(header.dim))
            path = header.file(self._folder, CODES)
            codes = np.asarray(np.memmap(path, dtype=np.uint8, mode="r", shape=shape))
            accelerator = Accelerator.build(codes, header.settings)
            accelerator.write(header.file(self._folder, ACCELERATOR))
        return header

    def _open_table(self, schema: pa.Schema) -> pa.ipc.RecordBatchFileWriter:
        path = self._header.file(self._folder, METADATA)
        self._table = pa.ipc.new_file(str(path), schema)
        return self._table

    def _sorted_ids(self) -> NDArray[np.int64]:
        ids = pa.chunked_array(self._ids, pa.string())
        order = pc.sort_indices(ids)
        in_order = ids.take(order)
        same = pc.equal(in_order[1:], in_order[:-1])
        if pc.any(same).as_py():
            row = pc.index(same, True).as_py()
            raise CodeIndexError(f"id {in_order[row].as_py()!r} occurs twice; ids must differ")
        sorted_rows: NDArray[np.int64] = order.to_numpy().astype(np.int64)
        return sorted_rows

    def _report(self, step: str) -> None:
        if self._progress is not None:
            self._progress(step, self._rows)


def commit(folder: Path, header: Header) -> None:
    """Make `header`'s generation the index, then remove every other generation's files.

    All of it is on the disk before the header says so: a power cut leaves one whole index.
    """
    mine = f"{header.generation:06d}-"
    for path in folder.glob(f"{mine}*"):
        _sync(path)
    header.write(folder)
    _sync(folder)
    for path in folder.iterdir():
        if path.name[:6].isdigit() and not path.name.startswith(mine):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
