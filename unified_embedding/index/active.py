"""`active.json`: which of the indexes that stand beside it answers searches.

    live/active.json            {"version": ..., "index": "blue", "sha256": ...}
    live/blue/  live/green/     indexes, each of one embedder version

The file is replaced in one step. `sha256` is that of the index's header.json, which states those of
all its files. A save of the index that is active announces the header it is about to write as
`next`, so that file and index fit at every moment, whenever anything is killed.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from unified_embedding.checkout import program
from unified_embedding.errors import CodeIndexError, shown
from unified_embedding.index.header import HEADER_FILE, Header
from unified_embedding.origin import Origin
from unified_embedding.whole_files import sync, write_whole

ACTIVE_FILE: Final = "active.json"
_LOCK_FILE: Final = ".active.lock"


@dataclass(frozen=True)
class Active:
    """The contents of active.json.

    Attributes:
        version: of the codes that are searched; queries must be of one that may search them.
        index: name of the index's folder, beside the file.
        sha256: of that index's header.json.
        next: of the header.json that a save is about to put there; else "".
    """

    version: str
    index: str
    sha256: str
    next: str = ""

    @classmethod
    def read(cls, place: Path) -> "Active":
        """Read `place/active.json`. Raises CodeIndexError when it is missing or damaged."""
        path = place / ACTIVE_FILE
        try:
            found = cls(**json.loads(path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            raise CodeIndexError(
                f"there is no {path}: no index of this folder is active. Make one so: "
                f"{program('index')} activate {place}/INDEX"
            ) from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CodeIndexError(f"{path} is damaged ({error}); {_again(place)}") from error
        if not all(isinstance(value, str) for value in vars(found).values()):
            raise CodeIndexError(f"{path} is damaged (a value is no text); {_again(place)}")
        if Path(found.index).name != found.index:
            raise CodeIndexError(
                f"{path} names {shown(found.index)}, which is no folder beside it; {_again(place)}"
            )
        return found

    def write(self, place: Path) -> None:
        """Replace `place/active.json` in one step."""
        said = {name: value for name, value in asdict(self).items() if value or name != "next"}
        try:
            write_whole(place / ACTIVE_FILE, json.dumps(said, indent=2) + "\n", fsync=True)
            sync(place)
        except OSError as error:
            raise CodeIndexError(f"{place / ACTIVE_FILE} cannot be written ({error})") from error

    def admits(self, sha256: str) -> bool:
        """Whether an index with such a header.json is the one that is meant."""
        return sha256 in (self.sha256, self.next)

    def check_version(self, origin: Origin) -> None:
        """Raise CodeIndexError unless an index of codes from `origin` may stand there."""
        if not origin.may_search(self.version):
            raise CodeIndexError(
                f"the index {self.index} holds codes of version {origin.version}, and "
                f"{ACTIVE_FILE} beside it makes it active for {self.version}: they must not be "
                f"mixed. Build each version's index in a folder of its own, and {_GO}"
            )


_GO: Final = f"flip to it by {program('index')} activate"


def header_sha256(folder: Path) -> str:
    """SHA-256 of the header.json in a folder, "" where there is none."""
    try:
        return hashlib.sha256((folder / HEADER_FILE).read_bytes()).hexdigest()
    except OSError:
        return ""


def place_of(folder: Path) -> Path:
    """Where the active.json stands that may name an index's folder."""
    return Path(os.path.abspath(folder)).parent


@contextmanager
def changing(place: Path) -> Iterator[None]:
    """Keep other processes from changing `place/active.json` meanwhile."""
    try:
        lock = (place / _LOCK_FILE).open("w")
    except OSError as error:
        raise CodeIndexError(f"{place} cannot be written ({error})") from error
    with lock as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in place.glob(f".{ACTIVE_FILE}.*.tmp"):
            left.unlink(missing_ok=True)
        yield


def check_save(folder: Path, origin: Origin) -> None:
    """Raise CodeIndexError if codes from `origin` must not stand in a folder that is active."""
    place = place_of(folder)
    if (place / ACTIVE_FILE).exists():
        found = Active.read(place)
        if found.index == Path(os.path.abspath(folder)).name:
            found.check_version(origin)


def put_header(folder: Path, header: Header) -> None:
    """Write an index's header.json, and where that index is active keep active.json in step."""
    place, name = place_of(folder), Path(os.path.abspath(folder)).name
    text = header.text()
    if not (place / ACTIVE_FILE).exists():
        write_whole(folder / HEADER_FILE, text, fsync=True)
        return
    with changing(place):
        found = Active.read(place)
        if found.index != name:
            write_whole(folder / HEADER_FILE, text, fsync=True)
            return
        found.check_version(header.origin)
        now, coming = header_sha256(folder), hashlib.sha256(text.encode()).hexdigest()
        # After a save that was killed here, `next` is what stands there.
        kept = now if found.admits(now) else found.sha256
        replace(found, sha256=kept, next=coming).write(place)
        write_whole(folder / HEADER_FILE, text, fsync=True)
        sync(folder)  # Each is on the disk before the next one: a power cut finds them in step.
        replace(found, sha256=coming, next="").write(place)


def _again(place: Path) -> str:
    return f"name the index again: {program('index')} activate {place}/INDEX"
