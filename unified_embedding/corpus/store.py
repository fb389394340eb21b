"""A folder on this machine or in an object store (s3://), and files in it that appear whole."""

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shutil import copyfileobj
from typing import Any, BinaryIO, Final

import pyarrow.fs as pafs

from unified_embedding.corpus.places import is_uri, resolve, split_options, with_options
from unified_embedding.errors import StoreError
from unified_embedding.paths import StrPath

__all__ = ["Store", "StoreError"]

# Hidden until it is whole: .NAME.PID@HOST.tmp, and .NAME.PID.tmp of earlier releases.
_UNFINISHED: Final = re.compile(r"\..+\.(\d+)(?:@(.+))?\.tmp")
_OTHERS_ARE_DEAD_AFTER: Final = 86_400.0


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
        folder, _, base = path.rpartition("/")
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with tempfile.TemporaryFile() as spool:
                yield spool
                spool.seek(0)
                with filesystem.open_output_stream(path) as stream:
                    copyfileobj(spool, stream)
            return
        os.makedirs(folder, exist_ok=True)
        hidden = f"{folder}/.{base}.{os.getpid()}@{socket.gethostname()}.tmp"
        try:
            with open(hidden, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(hidden, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(hidden)
            raise

    def sweep(self, *folders: str) -> int:
        """Remove what killed processes left half-written in these folders; returns how many files.

        A process of another machine counts as dead when its file is a day old.
        """
        if is_uri(self.place):
            return 0
        removed = 0
        for folder in folders:
            with suppress(FileNotFoundError):
                for entry in os.scandir(os.path.join(self.place, folder)):
                    if _is_left_over(entry):
                        with suppress(FileNotFoundError):
                            os.unlink(entry.path)
                            removed += 1
        return removed


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    name = _UNFINISHED.fullmatch(entry.name)
    if name is None or not entry.is_file(follow_symlinks=False):
        return False
    if name[2] in (None, socket.gethostname()):
        return not _is_alive(int(name[1]))
    return time.time() - entry.stat().st_mtime > _OTHERS_ARE_DEAD_AFTER


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
