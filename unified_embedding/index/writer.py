"""Write one generation of an index; nothing of it is visible before its header is."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unified_embedding.codes import code_bytes
from unified_embedding.errors import CodeIndexError, shown
from unified_embedding.index import checksums
from unified_embedding.index.accelerator import Accelerator
from unified_embedding.index.active import check_save, put_header
from unified_embedding.index.header import HEADER_FILE, Header
from unified_embedding.index.records import ID
from unified_embedding.index.segments import (
    ACCELERATOR,
    CODES,
    EMBEDDINGS,
    GROUP_ROWS,
    GROUP_STARTS,
    METADATA,
    ORDER,
    Base,
)
from unified_embedding.whole_files import sync

Progress = Callable[[str, int], None]
"""Called with the step's name and the rows done so far."""

LOCK_FILE: Final = ".lock"
_EMPTY: Final = pa.schema([(ID, pa.string())])
# Ids compared with their neighbours at once, to find one that occurs twice.
_BLOCK: Final = 1 << 20


class Writer:
    """Streams rows into the files of `header`'s generation, then builds what search needs.

    Used in a `with` block: whatever ends it before `commit` removes the generation's files and
    leaves the index that was there. A full disk, or another error of the file system, is a
    CodeIndexError.
    """

    def __init__(self, folder: Path, header: Header, progress: Progress | None = None) -> None:
        check_save(folder, header.origin)  # Not only after all the work.
        self._folder, self._header, self._progress = folder, header, progress
        self._rows = 0
        self._committed = False
        self._table: pa.ipc.RecordBatchFileWriter | None = None
        self._open = contextlib.ExitStack()
        with self._named():
            self._codes = self._open.enter_context(self._path(CODES).open("wb"))
            self._embeddings = (
                self._open.enter_context(self._path(EMBEDDINGS).open("wb"))
                if header.embeddings
                else None
            )

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._committed:
            return
        # Closing flushes, which may fail as the write before it did.
        with contextlib.suppress(OSError):
            if self._table is not None:
                self._table.close()
        with contextlib.suppress(OSError):
            self._open.close()
        for path in self._folder.glob(f"{self._header.generation:06d}-*"):
            path.unlink(missing_ok=True)

    def append(
        self, codes: NDArray[np.uint8], table: pa.Table, embeddings: NDArray[np.float16] | None
    ) -> None:
        """Add checked rows: codes [n, B], their table (id first) and embeddings [n, D] or None."""
        if not len(codes):
            return
        with self._named():
            writer = self._table or self._open_table(table.schema)
            _write(self._codes, codes)
            if self._embeddings is not None and embeddings is not None:
                _write(self._embeddings, embeddings)
            writer.write_table(table.combine_chunks())
        self._rows += len(codes)
        self._report("rows")

    def commit(self) -> tuple[Header, Base]:
        """Sort the ids, build the approximate structure, and make this generation the index.

        All of it is on the disk before the header says so: a power cut leaves one whole index.
        Files of other generations are removed then.

        Raises:
            CodeIndexError: an id occurs twice, or the disk is full; the old index stays.
        """
        with self._named():
            (self._table or self._open_table(_EMPTY)).close()
            self._table = None
            self._open.close()
            header = replace(self._header, rows=self._rows)
            names = [CODES, METADATA, *([EMBEDDINGS] if header.embeddings else [])]
            names += self._write_order()
            if header.settings.kind != "flat" and self._rows:
                names += self._build_accelerator()
            self._report("checksums")
            files = {name: checksums.measure(self._path(name)) for name in names}
            header = replace(header, files=files)
            base = self._read_back(header)
            for name in names:
                sync(self._path(name))
            put_header(self._folder, header)
            self._committed = True
            sync(self._folder)
        keep = {HEADER_FILE, *(self._path(name).name for name in names)}
        _remove_others(self._folder, keep)
        return header, base

    def _path(self, name: str) -> Path:
        return self._header.file(self._folder, name)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turn an error of the file system into one that says what became of the index."""
        try:
            yield
        except OSError as error:
            raise CodeIndexError(
                f"{self._folder} cannot be written ({error}); the index that was there is as it "
                "was: free space, and repeat the save or the build"
            ) from error

    def _open_table(self, schema: pa.Schema) -> pa.ipc.RecordBatchFileWriter:
        self._table = pa.ipc.new_file(str(self._path(METADATA)), schema)
        return self._table

    def _write_order(self) -> list[str]:
        """Write the rows in the order of their ids. Raises CodeIndexError on equal ids."""
        self._report("sorting ids")
        column = pa.ipc.open_file(pa.memory_map(str(self._path(METADATA)))).read_all().column(ID)
        # One array with 64-bit offsets: more than 2 GB of ids have no other.
        ids = column.cast(pa.large_string()).combine_chunks()
        order = pc.sort_indices(ids)
        for first in range(0, len(order), _BLOCK):
            in_order = ids.take(order[first : first + _BLOCK + 1])
            same = pc.equal(in_order[1:], in_order[:-1])
            if pc.any(same).as_py():
                twice = in_order[pc.index(same, True).as_py()].as_py()
                raise CodeIndexError(f"id {shown(twice)} occurs twice; ids must differ")
        with self._path(ORDER).open("wb") as file:
            _write(file, order.to_numpy().astype(np.int64))
        return [ORDER]

    def _build_accelerator(self) -> list[str]:
        settings = self._header.settings
        self._report(f"building {settings.kind}")
        shape = (self._rows, code_bytes(self._header.dim))
        codes = np.asarray(np.memmap(self._path(CODES), dtype=np.uint8, mode="r", shape=shape))
        built = Accelerator.build(codes, settings)
        built.write(self._path(ACCELERATOR))
        if built.groups is None:
            return [ACCELERATOR]
        for name, values in (
            (GROUP_ROWS, built.groups.rows),
            (GROUP_STARTS, built.groups.starts),
        ):
            with self._path(name).open("wb") as file:
                _write(file, values)
        return [ACCELERATOR, GROUP_ROWS, GROUP_STARTS]

    def _read_back(self, header: Header) -> Base:
        try:
            return Base(self._folder, header, check=False)
        except CodeIndexError as error:
            # FAISS does not tell when its last bytes find no place on the disk.
            raise OSError(f"what was written cannot be read: {error}") from error

    def _report(self, step: str) -> None:
        if self._progress is not None:
            self._progress(step, self._rows)


def _write(file: BinaryIO, values: NDArray[Any]) -> None:
    # Not `values.tofile`, which is silent when its last bytes find no place on the disk.
    file.write(np.ascontiguousarray(values).data)


def is_ours(name: str) -> bool:
    """Whether a file of an index's folder is the index's own."""
    made = name[:6].isdigit() or name.startswith(f".{HEADER_FILE}.")
    return made or name in (HEADER_FILE, LOCK_FILE)


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Remove the files of other generations, and what killed saves left."""
    keep |= {LOCK_FILE}
    for path in folder.iterdir():
        if is_ours(path.name) and path.name not in keep:
            # The save is done; what cannot be removed now goes with the next one.
            with contextlib.suppress(OSError):
                path.unlink()
