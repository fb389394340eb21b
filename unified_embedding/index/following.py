"""Searching the index that is active, whichever that is by now, and changing which one it is."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from unified_embedding.checkout import program
from unified_embedding.errors import CodeIndexError
from unified_embedding.index.active import (
    ACTIVE_FILE,
    Active,
    changing,
    header_sha256,
    place_of,
)
from unified_embedding.index.code_index import CodeIndex
from unified_embedding.index.header import HEADER_FILE, Header
from unified_embedding.index.saving import locked
from unified_embedding.index.writer import is_ours
from unified_embedding.paths import StrPath
from unified_embedding.whole_files import stamp

_T = TypeVar("_T")

# Each is lost only to a flip, or a save, that another process ended meanwhile.
_OPENINGS: Final = 20
_RETRY_SECONDS: Final = 1.0
_GONE: Final = ".removed-"

_log = logging.getLogger(__name__)


def open_index(place: StrPath) -> CodeIndex:
    """Open an index: the folder of one, or a folder whose active.json names one.

    Raises:
        CodeIndexError: it is damaged, or is not the one that was activated; or there is none, with
            the two commands that make one.
    """
    place = Path(place)
    followed = _followed(place)
    if followed is not None:
        return _open_active(followed)
    if not place.is_dir() or not any(place.iterdir()):
        raise CodeIndexError(
            f"there is no index in {place}. Make one: {program('backfill')} PICTURES "
            f"--out out/corpus && {program('index')} build out/corpus --out {place}"
        )
    return CodeIndex.open(place)


def activate(folder: StrPath) -> Active:
    """Let searches that follow the active.json beside `folder` use this index from now on.

    Raises:
        CodeIndexError: it is no sound index, is being saved, or active.json cannot be written;
            what was active stays so.
    """
    folder = Path(os.path.abspath(folder))
    if folder.is_symlink():
        raise CodeIndexError(f"{folder} is a link; name the folder itself, beside {ACTIVE_FILE}")
    Header.read(folder)  # Before a lock is left in what is no index.
    with locked(folder):
        opened = CodeIndex.open(folder)
        active = Active(opened.header.origin.version, folder.name, header_sha256(folder))
        with changing(folder.parent):
            active.write(folder.parent)
    return active


def remove(folder: StrPath) -> None:
    """Delete an index that is not active.

    Raises:
        CodeIndexError: it is active, or nothing beside it is; it is no index, holds other things,
            or is being saved; OSError: it cannot be deleted.
    """
    folder = Path(os.path.abspath(folder))
    place = place_of(folder)
    # Out of sight in one step. One that was killed then is finished by the same command.
    gone = place / f"{_GONE}{folder.name}"
    if gone.exists() and not folder.exists():
        shutil.rmtree(gone)
        return
    Header.read(folder)
    Active.read(place)
    with locked(folder), changing(place):
        active = Active.read(place)
        if active.index == folder.name:
            raise CodeIndexError(
                f"{folder} is active and stays: make another index active first "
                f"({program('index')} activate)"
            )
        others = sorted(path.name for path in folder.iterdir() if not is_ours(path.name))
        if others:
            raise CodeIndexError(f"{folder} holds other things ({others[0]}); move them away")
        if gone.exists():
            shutil.rmtree(gone)
        folder.rename(gone)
    shutil.rmtree(gone)


class Following(Generic[_T]):
    """What is made of the index that is active, made anew when another one is.

    Any number of threads may ask. While one of them opens the new index, the others go on with
    the old one; so they do when the new one cannot be opened, which is logged. What was got
    stays usable to the end of a request, even if its index is removed meanwhile.
    """

    def __init__(
        self,
        place: StrPath,
        make: Callable[[CodeIndex], _T],
        replaced: Callable[[_T], None] = lambda old: None,
    ) -> None:
        """Open the index of a place as `open_index` does. A plain index is never opened again.

        `replaced` is told what has been made of an index that is active no longer.

        Raises:
            CodeIndexError: as `open_index`.
        """
        self._place = _followed(Path(place))
        self._make, self._replaced = make, replaced
        self._opening = threading.Lock()
        self._not_before = 0.0
        self._seen = self._stamp()
        self._made = make(open_index(place))

    def unchanged(self) -> _T | None:
        """What `now` gives where that takes no opening of an index, else None."""
        return None if self._is_due(self._stamp()) else self._made

    def now(self) -> _T:
        """What is made of the index that is active now."""
        there = self._stamp()
        if (
            self._is_due(there)
            and self._place is not None
            and self._opening.acquire(blocking=False)
        ):
            try:
                if there != self._seen:  # Another thread may have opened it since.
                    old, self._made = self._made, self._make(_open_active(self._place))
                    self._seen = there
                    self._replaced(old)
            except CodeIndexError as error:
                self._not_before = time.monotonic() + _RETRY_SECONDS
                _log.error("the index that was active is searched on: %s", error)
            finally:
                self._opening.release()
        return self._made

    def _is_due(self, there: tuple[int, ...] | None) -> bool:
        return there not in (None, self._seen) and time.monotonic() >= self._not_before

    def _stamp(self) -> tuple[int, ...] | None:
        """Changes with active.json; None where there is none to follow."""
        return None if self._place is None else stamp(self._place / ACTIVE_FILE)


def _followed(place: Path) -> Path | None:
    """The folder of the active.json that is to be followed; None for an index of its own."""
    if place.name == ACTIVE_FILE:
        return place.parent
    alone = (place / HEADER_FILE).exists() or not (place / ACTIVE_FILE).exists()
    return None if alone else place


def _open_active(place: Path) -> CodeIndex:
    for _ in range(_OPENINGS):
        active = Active.read(place)
        folder = place / active.index
        before = header_sha256(folder)
        try:
            index = CodeIndex.open(folder)
        except CodeIndexError:
            if Active.read(place) == active:
                raise
            continue
        if before != header_sha256(folder) or Active.read(place) != active:
            continue
        active.check_version(index.header.origin)
        if active.admits(before):
            return index
        raise CodeIndexError(
            f"{folder} is not what was made active: its {HEADER_FILE} has SHA-256 "
            f"{before[:12]}..., {ACTIVE_FILE} states {active.sha256[:12]}...; if it is right, "
            f"make it active again: {program('index')} activate {folder}"
        )
    raise CodeIndexError(f"{place / ACTIVE_FILE} changes faster than it can be followed; try again")
