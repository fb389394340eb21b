"""Which picture files the arguments of a command line name."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from unified_embedding.corpus.places import local_place
from unified_embedding.corpus.sources import PassedOver
from unified_embedding.corpus.sources.finding import local_matches
from unified_embedding.corpus.sources.folders import files_below
from unified_embedding.corpus.text import printable
from unified_embedding.errors import InputError
from unified_embedding.image import SUFFIXES

__all__ = ["SUFFIXES", "InputError", "find_pictures"]


def find_pictures(arguments: Sequence[str]) -> list[Path]:
    """Files named by paths, folders and glob patterns, each once, in a stable order.

    A folder is searched recursively for files with one of `SUFFIXES`; hidden ones are left
    out, and a folder that links lead to more than once is visited once. Files named by
    themselves or matched by a pattern are taken whatever their name.

    Raises:
        InputError: an argument names nothing, or a folder holds no picture.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        pictures = list(_named(argument))
        if not pictures:
            raise InputError(f"{printable(argument)} holds no picture ({', '.join(SUFFIXES)})")
        found.update(dict.fromkeys(Path(os.path.normpath(picture)) for picture in pictures))
    return list(found)


def _named(argument: str) -> Iterator[Path]:
    for match in local_matches(argument):
        if os.path.isdir(match):
            for inside, _ in files_below(local_place(match), PassedOver()):
                if inside.lower().endswith(SUFFIXES):
                    yield Path(match, inside)
        else:
            yield Path(match)
