"""A folder on this machine or in an object store (s3://), and files in it that appear whole."""

import os
from functools import lru_cache
from typing import Any, Final

import pyarrow.fs as pafs

_LOCAL: Final = "file"


class StoreError(Exception):
    """A place cannot be used; the message says why."""


@lru_cache(maxsize=64)
def _filesystem(scheme: str, bucket: str, query: str) -> Any:
    if scheme == _LOCAL:
        return pafs.LocalFileSystem()
    if scheme == "s3":
        # Small objects go up in one request instead of a multipart upload of three.
        query = "&".join(part for part in (query, "allow_delayed_open=true") if part)
    uri = f"{scheme}://{bucket}" + (f"?{query}" if query else "")
    try:
        return pafs.FileSystem.from_uri(uri)[0]
    except (ValueError, OSError) as error:
        raise StoreError(f"{uri} is not a place that can be read ({error})") from error


def resolve(place: str) -> tuple[Any, str]:
    """The filesystem of a path or URI, and the path on it.

    s3://bucket/path takes pyarrow's options (?region=...&endpoint_override=...). Credentials come
    from the environment (AWS_ACCESS_KEY_ID, ...), never from the URI, which is written to disk.

    Raises:
        StoreError: an unknown scheme, or credentials in the URI.
    """
    scheme, separator, rest = place.partition("://")
    if not separator:
        return _filesystem(_LOCAL, "", ""), os.path.abspath(place)
    rest, _, query = rest.partition("?")
    bucket, _, path = rest.partition("/")
    if "@" in bucket:
        raise StoreError(
            f"{scheme}://...@... holds credentials; put them into the environment instead"
        )
    return _filesystem(scheme, bucket, query), f"{bucket}/{path}".rstrip("/")


class Store:
    """Files below one place. Objects of it can be sent to other machines."""

    def __init__(self, place: str) -> None:
        self.place = place if "://" in place else os.path.abspath(place)

    def __str__(self) -> str:
        return self.place

    def within(self, name: str) -> "Store":
        """The store of a folder below this one."""
        path, mark, query = self.place.partition("?")
        return Store(f"{path.rstrip('/')}/{name}{mark}{query}")

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

    def write(self, name: str, data: bytes) -> None:
        """Write a file; it appears whole or not at all.

        An object store shows an object when its upload is complete; on a file system the
        data go to a hidden name beside it first.
        """
        filesystem, root = resolve(self.place)
        path = f"{root}/{name}"
        folder, _, base = path.rpartition("/")
        filesystem.create_dir(folder, recursive=True)
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        temporary = f"{folder}/.{base}.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
