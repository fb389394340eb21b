"""The pictures of an index' rows: files of this machine, and only those that may be shown.

An index is data. What its rows name is followed below the folders that the operator allowed, or
that the corpus was made from; nothing that a picture's own metadata says chooses a file.
"""

import glob
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from unified_embedding.image import Limits

_TABLES: Final = (".parquet", ".tar")


class Pictures:
    """Reads the picture of a row, a regular file below one of `roots`; nothing else.

    A path is resolved first, so that a symbolic link leads nowhere that its target may not be.
    """

    def __init__(self, roots: Iterable[str | Path]) -> None:
        self.roots = tuple(Path(os.path.realpath(root)) for root in roots)

    def path(self, record: Mapping[str, Any]) -> Path | None:
        """The file of a row's own column `source`, resolved; None where there is none to show."""
        source = record.get("source")
        if not isinstance(source, str) or not source:
            return None
        try:
            path = Path(os.path.realpath(source, strict=True))
            regular = stat.S_ISREG(path.stat().st_mode)
        except (OSError, ValueError):
            return None
        allowed = any(path.is_relative_to(root) for root in self.roots)
        return path if regular and allowed else None

    def read(self, record: Mapping[str, Any]) -> bytes | None:
        """The bytes of a row's picture; None where there is none, or it is too large to decode."""
        path = self.path(record)
        if path is None:
            return None
        try:
            # Opened without waiting and without following a link, should the file have been
            # replaced by a FIFO or a link since it was looked at.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags), "rb") as file:
                there = os.fstat(file.fileno())
                small = there.st_size <= Limits.from_environment().max_bytes
                return file.read(there.st_size) if stat.S_ISREG(there.st_mode) and small else None
        except OSError:
            return None


def roots_of(inputs: Sequence[str]) -> tuple[str, ...]:
    """The folders and files of this machine in which the pictures of a back-fill's inputs lie.

    A relative input is taken from the working folder, a pattern by its part before the first
    wildcard, a table by its folder; inputs in an object store have none.
    """
    roots = []
    for name in inputs:
        path = Path(name)
        if "://" in name and not path.exists():
            continue
        if not path.exists() and glob.has_magic(name):
            path = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        if path.suffix.lower() in _TABLES:
            path = path.parent
        roots.append(os.path.abspath(path))
    return tuple(dict.fromkeys(roots))
