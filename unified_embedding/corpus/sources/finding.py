"""From the arguments of a command to the pictures that they name."""

import fnmatch
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow.fs as pafs

from unified_embedding.corpus.places import (
    is_uri,
    local_path,
    local_place,
    open_regular,
    reason,
    resolve,
    split_options,
    with_options,
)
from unified_embedding.corpus.sources.folders import files_below
from unified_embedding.corpus.sources.item import FILE, LISTED, Item, PassedOver
from unified_embedding.corpus.sources.parquet import Table, in_parquet
from unified_embedding.corpus.sources.tables import METADATA_TABLES, read_table
from unified_embedding.corpus.sources.tars import COMPRESSED, NO_PICTURE, in_tar
from unified_embedding.corpus.text import printable
from unified_embedding.errors import DamagedError, InputError, StoreError
from unified_embedding.image import SUFFIXES

_BROKEN: Final = "tar and Parquet files, and tables, that cannot be used"
_REPEATED: Final = "pictures named a second time, or under a name that was taken"


def find(
    inputs: Sequence[str],
    image_column: str | None = None,
    metadata: Path | None = None,
    roots: Sequence[str] = (),
    passed: PassedOver | None = None,
    files_only: bool = False,
) -> Iterator[Item]:
    """Every picture that the inputs name, once, in a stable order.

    A folder is searched for pictures, .tar and .parquet files; tables in it (`METADATA_TABLES`)
    give metadata to the pictures beside and below them; so does the table `metadata`, for local
    files. Paths in Parquet files are followed below the file's own folder and below `roots`.

    Args:
        inputs: files, folders, glob patterns; local or URIs.
        image_column: the Parquet column with pictures or paths.
        metadata: a table, CSV, JSON lines or Parquet.
        roots: further folders that paths in Parquet files may lead into.
        passed: takes what is left out, by reason.
        files_only: every picture is a file of its own: a folder is searched for nothing else,
            and what is named is a picture, whatever its name.

    Raises:
        InputError: an input names nothing, or a file cannot be understood.
    """
    passed = PassedOver() if passed is None else passed
    asked = _Asked(image_column, tuple(_place(root) for root in roots), passed, files_only)
    wanted = f"picture ({', '.join(SUFFIXES)})" if files_only else "picture, .tar or .parquet file"
    known = _known(metadata, passed) if metadata else {}
    ids: set[str] = set()
    files: set[str] = set()
    for argument in inputs:
        count = 0
        for name, place in _matches(argument):
            for item in _expand(name, place, asked):
                count += 1
                file = _identity(item)
                if item.id in ids or file in files:
                    passed.add(_REPEATED, item.id)
                    continue
                ids.add(item.id)
                if file:
                    files.add(file)
                said = known.get(item.place)
                if said:
                    item = replace(item, metadata=passed.facts(item.id, said))
                yield item
        if not count:
            raise InputError(f"{printable(argument)} holds no {wanted}")


@dataclass(frozen=True)
class _Asked:
    """What the search was asked for beside its inputs."""

    image_column: str | None
    roots: tuple[str, ...]
    passed: PassedOver
    files_only: bool


def _place(argument: str) -> str:
    return argument if is_uri(argument) else local_place(local_path(argument))


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _identity(item: Item) -> str:
    """A local file's path without links in its folders; "" for everything else."""
    if item.kind not in (FILE, LISTED) or item.problem or is_uri(item.place):
        return ""
    folder, name = os.path.split(local_path(item.place))
    return f"{_real(folder)}/{name}"


def _local_matches(argument: str) -> list[str]:
    """The files and folders of this machine that a path or a glob pattern names, each once.

    Raises:
        InputError: there is none.
    """
    if os.path.exists(argument):
        return [argument]
    if not glob.has_magic(argument):
        raise InputError(f"{printable(argument)} does not exist")
    names = _globbed(argument)
    if not names:
        raise InputError(f"no file matches {printable(argument)}")
    found: dict[str, str] = {}
    # Links give one file many names; its own is no link, or the shortest.
    for name in sorted(names, key=lambda name: (os.path.islink(name), name.count("/"), name)):
        folder, base = os.path.split(os.path.abspath(name))
        real = os.path.realpath(name) if os.path.isdir(name) else f"{_real(folder)}/{base}"
        found.setdefault(real, name)
    return sorted(found.values(), key=lambda name: (os.path.islink(name), name))


def _globbed(pattern: str) -> list[str]:
    if "**" not in pattern.split("/"):
        return glob.glob(pattern)
    # Here "**" follows no links: with loops of them, glob would go through every path.
    top = Path("/" if pattern.startswith("/") else "")
    inside = pattern.lstrip("/")
    found = (str(path) for path in top.glob(inside))
    if any(part.startswith(".") and part.strip(".") for part in inside.split("/")):
        return list(found)
    # As with "*", hidden files are no matches.
    return [
        name
        for name in found
        if not any(part.startswith(".") and part.strip(".") for part in name.split("/"))
    ]


def _matches(argument: str) -> Iterator[tuple[str, str]]:
    """The files and folders of one argument: the name that ids begin with, and the place."""
    if not is_uri(argument):
        for name in _local_matches(local_path(argument)):
            yield printable(os.path.normpath(name)), local_place(name)
        return
    path, options = split_options(argument)
    if not glob.has_magic(path):
        yield path.rstrip("/"), argument
        return
    fixed = path[: min(path.find(sign) for sign in "*[?" if sign in path)].rpartition("/")[0]
    scheme = path.partition("://")[0]
    filesystem, root = _resolved(with_options(fixed, options))
    for entry in sorted(
        filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)),
        key=lambda entry: str(entry.path),
    ):
        name = f"{scheme}://{entry.path}"
        if entry.type == pafs.FileType.File and fnmatch.fnmatchcase(name, path):
            yield name, with_options(name, options)


def _resolved(place: str) -> tuple[Any, str]:
    try:
        return resolve(place)
    except StoreError as error:
        raise InputError(str(error)) from error


def _expand(name: str, place: str, asked: _Asked) -> Iterator[Item]:
    """The pictures of one file or folder."""
    if _is_folder(name, place):
        yield from _in_folder(name, place, asked)
        return
    if asked.files_only:
        yield Item(name, FILE, place)
        return
    try:
        open_regular(place)[0].close()
        yield from _in_file(name, place, asked)
    except (DamagedError, StoreError) as error:
        raise InputError(f"{name} {error}") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read ({reason(error)})") from error


def _is_folder(name: str, place: str) -> bool:
    if not is_uri(place):
        return os.path.isdir(local_path(place))
    filesystem, path = _resolved(place)
    try:
        kind = filesystem.get_file_info(path).type
    except OSError as error:
        raise InputError(f"{name} cannot be read ({reason(error)})") from error
    if kind == pafs.FileType.NotFound:
        raise InputError(f"{name} does not exist")
    return bool(kind == pafs.FileType.Directory)


def _in_folder(name: str, place: str, asked: _Asked) -> Iterator[Item]:
    found = files_below(place, asked.passed)
    if asked.files_only:
        for inside, where in found:
            below = f"{name}/{printable(inside)}"
            if inside.lower().endswith(SUFFIXES):
                yield Item(below, FILE, where)
            else:
                asked.passed.add(NO_PICTURE, below)
        return
    tables = {
        inside: where for inside, where in found if inside.rpartition("/")[2] in METADATA_TABLES
    }
    facts, used = _folder_facts(name, tables, {inside for inside, _ in found}, asked.passed)
    for inside, where in found:
        if inside in used:
            continue
        below = f"{name}/{printable(inside)}"
        lower = inside.lower()
        if lower.endswith((*SUFFIXES, ".tar", ".parquet")):
            try:
                yield from _in_file(below, where, asked, facts.get(inside, {}))
            except DamagedError as error:
                asked.passed.add(_BROKEN, f"{below} {error}")
        elif lower.endswith(COMPRESSED):
            asked.passed.add("compressed tar files: unpack them to .tar", below)
        elif inside not in tables:
            asked.passed.add(NO_PICTURE, below)


def _folder_facts(
    name: str, tables: Mapping[str, str], there: set[str], passed: PassedOver
) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """What the tables say, by the picture's path in the folder; and the tables that were read.

    A table nearer to a picture says more than one further up.
    """
    facts: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    order = list(METADATA_TABLES)
    for inside in sorted(
        tables, key=lambda one: (one.count("/"), -order.index(one.rpartition("/")[2]))
    ):
        folder = inside.rpartition("/")[0]
        below = f"{name}/{printable(inside)}"
        try:
            rows = read_table(below, tables[inside], passed)
        except DamagedError as error:
            # A Parquet file of this name may hold the pictures themselves.
            if not inside.endswith(".parquet"):
                passed.add(_BROKEN, f"{below} {error}")
                used.add(inside)
            continue
        used.add(inside)
        for path, said in rows.items():
            picture = f"{folder}/{path}" if folder else path
            if picture in there:
                facts.setdefault(picture, {}).update(said)
            else:
                passed.add("rows of a table that name no file beside it", f"{below}: {path}")
    return facts, used


def _known(table: Path, passed: PassedOver) -> dict[str, dict[str, Any]]:
    """Metadata by place."""
    try:
        rows = read_table(str(table), local_place(str(table)), passed)
    except DamagedError as error:
        raise InputError(f"{table} {error}") from error
    return {local_place(str(table.parent / path)): facts for path, facts in rows.items()}


def _in_file(
    name: str, place: str, asked: _Asked, facts: Mapping[str, Any] | None = None
) -> Iterator[Item]:
    """The pictures of one file. Raises DamagedError, InputError."""
    lower = split_options(place)[0].lower() if is_uri(place) else local_path(place).lower()
    if lower.endswith(COMPRESSED):
        raise InputError(f"{name} is compressed, so that its members cannot be read by themselves")
    if lower.endswith(".tar"):
        yield from in_tar(name, place, asked.passed)
    elif lower.endswith(".parquet"):
        table = Table(name, place, asked.image_column, asked.roots)
        yield from in_parquet(table, asked.passed)
    else:
        yield Item(name, FILE, place, metadata=asked.passed.facts(name, dict(facts or {})))
