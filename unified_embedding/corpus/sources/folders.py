"""The files below a folder, local or in an object store; each folder is visited once."""

import os
from collections.abc import Iterator
from typing import Final

import pyarrow.fs as pafs

from unified_embedding.corpus.places import (
    is_uri,
    local_path,
    local_place,
    reason,
    resolve,
    split_options,
    with_options,
)
from unified_embedding.corpus.sources.item import PassedOver
from unified_embedding.corpus.sources.tars import MAC, is_of_a_mac
from unified_embedding.errors import InputError

HIDDEN: Final = "hidden files and folders"
VISITED: Final = "links to a folder that is visited by another way"
NO_ENTRY: Final = "folders that cannot be read"


def files_below(place: str, passed: PassedOver) -> list[tuple[str, str]]:
    """The files below a folder: path inside it, and place, in the order of the paths.

    Hidden ones are left out, and so are files that macOS puts beside others. Links are followed;
    what is no regular file is refused when it is opened.
    """
    if not is_uri(place):
        top = local_path(place)
        found = _walk(top, passed)
        return sorted((os.path.relpath(path, top), local_place(path)) for path in found)
    filesystem, root = resolve(place)
    scheme, options = place.partition("://")[0], split_options(place)[1]
    listed = []
    try:
        entries = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise InputError(f"{split_options(place)[0]} cannot be listed ({reason(error)})") from error
    for entry in entries:
        inside = entry.path.removeprefix(root).lstrip("/")
        if entry.type == pafs.FileType.File and _is_shown(inside, entry.path, passed):
            listed.append((inside, with_options(f"{scheme}://{entry.path}", options)))
    return sorted(listed)


def _is_shown(inside: str, path: str, passed: PassedOver) -> bool:
    if is_of_a_mac(inside):
        passed.add(MAC, path)
        return False
    if any(part.startswith(".") for part in inside.split("/")):
        passed.add(HIDDEN, path)
        return False
    return True


def _walk(top: str, passed: PassedOver) -> Iterator[str]:
    """The files; what lies in real folders comes by its own name, not by a link's."""
    visited: set[tuple[int, int]] = set()
    waiting: list[str] = [top]
    links: list[str] = []
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                passed.add(VISITED, folder)
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            passed.add(NO_ENTRY, f"{folder} ({reason(error)})")
            continue
        for entry in entries:
            if not _is_shown(entry.name, entry.path, passed):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_dir():
                links.append(entry.path)
            else:
                yield entry.path
