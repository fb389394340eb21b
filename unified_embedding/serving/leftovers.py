"""What a server keeps in /dev/shm, and the removal of it when the server was killed.

Everything of one server has a name that begins with `unified_embedding-PID-START-`
(server_files.py). One file of them, its *mark*, is locked by tritonserver and, since a lock is
inherited, by its models' processes for as long as one of them lives. So a mark that can be locked
belongs to a dead server. Process ids alone would not tell: containers that share /dev/shm do not
see one another's.
"""

import contextlib
import fcntl
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from unified_embedding.serving import processes, server_files

_OURS: Final = "unified_embedding-"
_MARK: Final = "server"
_MARKS: Final = re.compile(rf"({_OURS}\d+-\d+-){_MARK}")
_KILLED_WITHIN_S: Final = 10.0


def claim(folder: Path = server_files.FOLDER) -> str:
    """Mark this process, which becomes tritonserver, as a server that lives.

    The lock outlives exec, and its descriptor is inherited by what this process starts.

    Returns:
        How the names of this server's files begin.
    """
    path = server_files.path_of(_MARK, os.getpid(), folder)
    while True:
        mark = server_files.open_own(path, create=True)
        fcntl.flock(mark, fcntl.LOCK_EX)
        if os.fstat(mark).st_nlink:
            os.set_inheritable(mark, True)
            return path.name.removesuffix(_MARK)
        # Taken for a dead server's between the two calls, and removed.
        os.close(mark)


def clean(folder: Path = server_files.FOLDER, ended: int | None = None) -> None:
    """Remove what this user's dead servers left: processes of models, and files in /dev/shm.

    Args:
        folder: where the files are.
        ended: a tritonserver that has ended just now. Its models' processes may still be on
            their way out, and are waited for.
    """
    awaited = set() if ended is None else {f"{_OURS}{ended}-"}
    end = time.monotonic() + _KILLED_WITHIN_S
    while True:
        for pid, region in _orphans():
            with contextlib.suppress(OSError):
                # They ignore SIGTERM, and a stopped one everything else.
                os.kill(pid, signal.SIGKILL)
                awaited.add(region)
        held = _remove(folder)
        # A region's name begins with its server's prefix, and that with the server's number.
        waiting = any(
            name.startswith(prefix) or prefix.startswith(name)
            for name in awaited
            for prefix in held
        )
        if not waiting or time.monotonic() > end:
            return
        time.sleep(0.02)


def _orphans() -> Iterator[tuple[int, str]]:
    """Stubs of ours that have lost their tritonserver, and their regions."""
    for pid in processes.everyone():
        region = processes.region_of(pid)
        if (
            region.startswith(_OURS)
            and processes.user(pid) == os.geteuid()
            and processes.name(processes.parent(pid)) != processes.SERVER
        ):
            yield pid, region


def _remove(folder: Path) -> list[str]:
    """Remove the files of dead servers; the prefixes of those that live."""
    try:
        marks = [found for entry in os.listdir(folder) if (found := _MARKS.fullmatch(entry))]
    except OSError:
        return []
    return [mark[1] for mark in marks if _is_held(folder, mark[0], mark[1])]


def _is_held(folder: Path, mark: str, prefix: str) -> bool:
    """Whether a server's processes live; if not, its files are gone now."""
    try:
        descriptor = server_files.open_own(folder / mark, create=False)
    except OSError:  # Another user's, or removed in the meantime.
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The mark goes last: an interrupted removal is taken up again.
        names = [name for name in os.listdir(folder) if name.startswith(prefix) and name != mark]
        for name in [*names, mark]:
            (folder / name).unlink(missing_ok=True)
    except BlockingIOError:
        return True
    except OSError:  # A file among them that may not be removed.
        return False
    finally:
        os.close(descriptor)
    return False
