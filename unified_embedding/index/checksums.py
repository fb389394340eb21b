"""Sizes and SHA-256 of an index' files, so that a damaged one is named instead of searched."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from unified_embedding.errors import CodeIndexError

REMEDY = "build the index again, or put the file back from a copy"


@dataclass(frozen=True)
class File:
    """What a file must hold.

    Attributes:
        size: its size in bytes.
        sha256: SHA-256 of its bytes, in hex.
    """

    size: int
    sha256: str


def measure(path: Path) -> File:
    """Size and digest of a file; reads all of it, about a second a gigabyte."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(os.fstat(file.fileno()).st_size, digest)


def check_size(path: Path, size: int) -> None:
    """Raise CodeIndexError unless the file has `size` bytes; FileNotFoundError if it is gone."""
    there = path.stat().st_size
    if there != size:
        raise CodeIndexError(f"{path} has {there:,} bytes where {size:,} belong; {REMEDY}")


def check(path: Path, file: File) -> None:
    """Raise CodeIndexError unless `path` holds what `file` says. Raises OSError as reading does."""
    check_size(path, file.size)
    if measure(path) != file:
        raise CodeIndexError(f"{path} is damaged (its SHA-256 is another); {REMEDY}")
