"""Folding base and tail into a new generation while both are in use."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import CodeIndexError
from unified_embedding.index.header import HEADER_FILE, Header
from unified_embedding.index.matches import Snapshot
from unified_embedding.index.segments import Base, Tail
from unified_embedding.index.writer import LOCK_FILE, Writer, is_ours

_BLOCK: Final = 65_536


def write_living(
    writer: Writer, old: tuple[Base, Tail], parts: Snapshot, kept: NDArray[np.bool_]
) -> None:
    """Write the rows that `kept` marks, base first, in their order."""
    base = old[0]
    for start in range(0, len(parts.base), _BLOCK):
        rows = start + np.flatnonzero(kept[start : min(start + _BLOCK, len(parts.base))])
        embeddings = None if base.embeddings is None else base.embeddings[rows]
        table = base.records.living(kept[: start + _BLOCK][: len(parts.base)], start)
        writer.append(base.codes[rows], table, embeddings)
    rows = np.flatnonzero(kept[len(parts.base) :])
    if len(rows):
        table = parts.tail.records.living(kept[len(parts.base) :])
        embeddings = None if parts.tail.embeddings is None else parts.tail.embeddings[rows]
        writer.append(parts.tail.codes[rows], table, embeddings)


def carried(
    base: Base, old: tuple[Base, Tail], written: int, kept: NDArray[np.bool_]
) -> tuple[Base, Tail]:
    """The new segments, with the additions and deletions that arrived during the save."""
    alive = np.concatenate((old[0].alive, old[1].alive[:written]))
    position = np.cumsum(kept) - 1
    base.kill(position[kept & ~alive])
    return base, old[1].after(written)


def next_generation(folder: Path) -> int:
    """Number of the next save in `folder`. Raises CodeIndexError if it holds other things."""
    if (folder / HEADER_FILE).exists():
        return Header.read(folder).generation + 1
    strangers = [path.name for path in folder.iterdir() if not is_ours(path.name)]
    if strangers:
        raise CodeIndexError(f"{folder} holds other things ({strangers[0]}); name a new folder")
    return 1


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from saving the same index meanwhile."""
    try:
        lock = (folder / LOCK_FILE).open("w")
    except OSError as error:
        raise CodeIndexError(f"{folder} cannot be written ({error})") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CodeIndexError(f"another process is saving {folder}; try again later") from None
        yield
