"""Which pictures the arguments of a command line name."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class InputError(Exception):
    """The arguments name no picture; the message says which one and why."""


def find_pictures(arguments: Sequence[str]) -> list[Path]:
    """Files named by paths, folders and glob patterns, each once, in a stable order.

    A folder is searched recursively for files with one of `SUFFIXES`; hidden ones are left
    out. Files named by themselves or matched by a pattern are taken whatever their name.

    Raises:
        InputError: an argument names nothing, or a folder holds no picture.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        pictures = list(_named(argument))
        if not pictures:
            raise InputError(f"{argument} holds no picture ({', '.join(SUFFIXES)})")
        found.update(dict.fromkeys(Path(os.path.normpath(picture)) for picture in pictures))
    return list(found)


def _named(argument: str) -> Iterator[Path]:
    if os.path.exists(argument):
        matches = [argument]
    elif glob.has_magic(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        if not matches:
            raise InputError(f"no file matches {argument}")
    else:
        raise InputError(f"{argument} does not exist")
    for match in matches:
        path = Path(match)
        yield from _in_folder(path) if path.is_dir() else [path]


def _in_folder(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(place, name)
