"""Files by path or URI: which one a place means, and regular files opened for reading.

A place is an absolute path, or a URI with pyarrow's options behind the last "?"
(s3://bucket/key?region=...). A local name that is not UTF-8 is a file:// URI, so that every
place can be written down.
"""

import io
import os
import posixpath
import stat
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, BinaryIO, Final
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa
import pyarrow.fs as pafs

from unified_embedding.corpus.text import printable
from unified_embedding.errors import StoreError
from unified_embedding.image.limits import setting

LOCAL: Final = "file://"
# Sizes of reads: headers of a tar are small and close together.
_BUFFER: Final = 1 << 16


def is_uri(place: str) -> bool:
    """Whether a place is not a path of this machine."""
    return "://" in place and not place.startswith(("/", LOCAL))


def split_options(place: str) -> tuple[str, str]:
    """A place without its options, and the options; a path has none, whatever its name."""
    if not is_uri(place) or "?" not in place:
        return place, ""
    path, _, options = place.rpartition("?")
    # A key may hold a question mark too; options are never without an equals sign.
    return (path, options) if not options or "=" in options else (place, "")


def with_options(path: str, options: str) -> str:
    """The inverse of `split_options` for a URI."""
    return f"{path}?{options}" if options or "?" in path else path


def local_place(path: str) -> str:
    """The place of a local path."""
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
        return absolute
    except UnicodeEncodeError:
        return LOCAL + quote(os.fsencode(absolute))


def local_path(place: str) -> str:
    """The path of a place on this machine."""
    if place.startswith(LOCAL):
        return os.fsdecode(unquote_to_bytes(place.removeprefix(LOCAL)))
    return place


def shown(place: str) -> str:
    """A place for people: without options, as text."""
    return split_options(place)[0] if is_uri(place) else printable(local_path(place))


@lru_cache(maxsize=64)
def _filesystem(scheme: str, bucket: str, options: str) -> Any:
    if scheme == "s3":
        # Small objects go up in one request instead of a multipart upload of three.
        options = "&".join(part for part in (options, "allow_delayed_open=true") if part)
    uri = f"{scheme}://{bucket}" + (f"?{options}" if options else "")
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
    if not is_uri(place):
        return pafs.LocalFileSystem(), os.path.abspath(local_path(place))
    path, options = split_options(place)
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        raise StoreError(
            f"{scheme}://...@... holds credentials; put them into the environment instead"
        )
    return _filesystem(scheme, bucket, options), f"{bucket}/{key}".rstrip("/")


def open_regular(place: str) -> tuple[BinaryIO, int]:
    """A file for reading at any position, and its size in bytes.

    Raises:
        OSError: it is not there, or is no regular file: a pipe would be waited for without
            end, a device read without end.
        StoreError: see `resolve`.
    """
    if is_uri(place):
        filesystem, path = resolve(place)
        remote = filesystem.open_input_file(path)
        return io.BufferedReader(remote, _BUFFER), remote.size()
    path = local_path(place)
    # Asked before it is opened, since opening a device may do something already.
    _require_regular(os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        _require_regular(status)
        return os.fdopen(descriptor, "rb", _BUFFER), status.st_size
    except BaseException:
        os.close(descriptor)
        raise


def open_for_arrow(place: str) -> Any:
    """The same as `open_regular` for pyarrow's readers: a native file, read without copies."""
    if is_uri(place):
        filesystem, path = resolve(place)
        return filesystem.open_input_file(path)
    open_regular(place)[0].close()
    return pa.OSFile(os.fsencode(local_path(place)))


def too_large(size: int, limit: int) -> str:
    """The sentence about a picture that is refused for its size."""
    return f"it has {size:,} bytes; the limit is {limit:,} ({setting('max_bytes')})"


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise OSError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file but a pipe, socket or device")


def reason(error: Exception) -> str:
    """Why a file cannot be read, in words, without its name."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def folder_of(place: str) -> str:
    """The folder that a file lies in, as a place."""
    path, options = split_options(place)
    if not is_uri(place):
        return local_place(os.path.dirname(local_path(place)))
    return with_options(posixpath.dirname(path), options)


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def real_path(path: str) -> str:
    """The local path without symbolic links."""
    folder, name = os.path.split(path)
    joined = os.path.join(_real_folder(folder), name)
    return os.path.realpath(joined) if os.path.islink(joined) else joined


def is_below(place: str, roots: Sequence[str]) -> bool:
    """Whether a place lies below one of the folders; local ones are compared without links."""
    for root in roots:
        if is_uri(place) != is_uri(root):
            continue
        if is_uri(place):
            folder, path = split_options(root)[0].rstrip("/"), split_options(place)[0]
            if path.startswith(f"{folder}/") and ".." not in path.split("/"):
                return True
        else:
            folder = os.path.realpath(local_path(root)).rstrip("/")
            if real_path(local_path(place)).startswith(f"{folder}/"):
                return True
    return False
