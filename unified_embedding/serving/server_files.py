"""Small files that the model processes of one tritonserver share, in /dev/shm.

Each is named `unified_embedding-PID-START-WHAT`: tritonserver's process id and its start in clock
ticks since boot (proc(5), field 22 of /proc/PID/stat), so that whoever cleans up after a server
that was killed can tell its files from those of a living one.
"""

import os
import stat
from pathlib import Path
from typing import Final

FOLDER: Final = Path("/dev/shm")
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def path_of(what: str, server: int | None = None, folder: Path = FOLDER) -> Path:
    """Where the file `what` of a server is.

    Args:
        what: what the file is for.
        server: tritonserver's process id; by default the parent of this process.
        folder: of all such files.
    """
    server = os.getppid() if server is None else server
    # With its start: containers may share /dev/shm, and each has its own process 1.
    started = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[19]
    return folder / f"unified_embedding-{server}-{started}-{what}"


def open_own(path: Path, *, create: bool) -> int:
    """Open a shared file for reading and writing; a new one is for its owner alone (0600).

    Raises:
        OSError: there is none and `create` is False, it is not a regular file, or it belongs to
            another user.
    """
    descriptor = os.open(path, _FLAGS | (os.O_CREAT if create else 0), 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(f"{path} is not a file of this process' user")
    return descriptor
