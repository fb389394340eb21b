"""A folder on this machine or in an object store (s3://), and files in it that appear whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shutil import copyfileobj
from typing import Any, BinaryIO

import pyarrow.fs as pafs

from unified_embedding.corpus.places import is_uri, resolve, split_options, with_options
from unified_embedding.errors import StoreError
from unified_embedding.paths import StrPath
from unified_embedding.whole_files import is_left_over, whole_file

__all__ = ["Store", "StoreError"]


class Store:
    """Files below one place. Objects of it can be sent to other machines."""

    def __init__(self, place: StrPath) -> None:
        place = os.fspath(place)
        self.place = place if is_uri(place) else os.path.abspath(place)

    def __str__(self) -> str:
        return self.place

    def within(self, name: str) -> "Store":
        """The store of a folder below this one."""
        path, options = split_options(self.place)
        return Store(with_options(f"{path.rstrip('/')}/{name}", options))

    def sizes(self, folder: str) -> dict[str, int]:
        """Names and sizes in bytes of the files directly in a folder; hidden ones are left out."""
        filesystem, root = resolve(self.place)
        selector = pafs.FileSelector(f"{root}/{folder}", allow_not_found=True)
        return {
            entry.base_name: entry.size
            for entry in filesystem.get_file_info(selector)
            if entry.type == pafs.FileType.File and not entry.base_name.startswith(".")
        }

    def folders(self) -> list[str]:
        """Names of the folders directly in this place, sorted."""
        filesystem, root = resolve(self.place)
        found = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.type == pafs.FileType.Directory)

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        filesystem, root = resolve(self.place)
        return bool(filesystem.get_file_info(f"{root}/{name}").type == pafs.FileType.File)

    def open(self, name: str) -> Any:
        """A file for random reading, as pyarrow.NativeFile. Raises FileNotFoundError."""
        filesystem, root = resolve(self.place)
        return filesystem.open_input_file(f"{root}/{name}")

    def read(self, name: str) -> bytes:
        """The contents of a file. Raises FileNotFoundError."""
        with self.open(name) as file:
            return bytes(file.read())

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        filesystem, root = resolve(self.place)
        if self.exists(name):
            filesystem.delete_file(f"{root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file; it appears whole or not at all."""
        with self.create(name) as file:
            file.write(data)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write into; it appears, whole, when the block ends without an error.

        On a file system the data go to a hidden name beside it first. An object store shows an
        object when its upload is complete, and that begins when all is there.
        """
        filesystem, root = resolve(self.place)
        path = f"{root}/{name}"
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with tempfile.TemporaryFile() as spool:
                yield spool
                spool.seek(0)
                with filesystem.open_output_stream(path) as stream:
                    copyfileobj(spool, stream)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole_file(path, fsync=True) as hidden, hidden.open("wb") as file:
            yield file

    def sweep(self, *folders: str) -> int:
        """Remove what killed processes left half-written in these folders.

        Returns how many files those were; see `is_left_over`.
        """
        if is_uri(self.place):
            return 0
        removed = 0
        for folder in folders:
            with suppress(FileNotFoundError):
                for entry in os.scandir(os.path.join(self.place, folder)):
                    if is_left_over(entry):
                        with suppress(FileNotFoundError):
                            os.unlink(entry.path)
                            removed += 1
        return removed
