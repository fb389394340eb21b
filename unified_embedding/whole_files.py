"""Files that appear whole or not at all."""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from unified_embedding.paths import StrPath

# Hidden until it is whole: .NAME.PID@HOST.tmp, and .NAME.PID.tmp of earlier releases.
_UNFINISHED: Final = re.compile(r"\..+\.(\d+)(?:@(.+))?\.tmp")
_OTHERS_ARE_DEAD_AFTER: Final = 86_400.0


def write_whole(path: StrPath, data: str | bytes, fsync: bool = False) -> None:
    """Write a file in one step, and make its folder; text is UTF-8. `fsync` as in `whole_file`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, fsync) as temporary:
        temporary.write_bytes(data if isinstance(data, bytes) else data.encode())


@contextmanager
def whole_file(path: StrPath, fsync: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends without an error.

    With `fsync` the data are on the disk before they take it: a power cut leaves one whole file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")
    try:
        yield temporary
        if fsync:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def stamp(path: StrPath) -> tuple[int, int, int] | None:
    """Differs when another file takes a file's place; None where there is none."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_mtime_ns, found.st_ino, found.st_size
    return None


def sync(path: StrPath) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_left_over(entry: os.DirEntry[str]) -> bool:
    """Whether a killed process left this half-written file.

    A process of another machine counts as dead when its file is a day old.
    """
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
