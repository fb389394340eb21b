"""Where pictures come from: files, folders, globs, tar shards, Parquet; local or s3://.

A picture is found once, as an `Item` that says how to read it again, on any machine.
"""

import csv
import fnmatch
import glob
import io
import json
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from _picture_files import SUFFIXES, InputError
from _store import StoreError, resolve

FILE: Final = "file"
TAR: Final = "tar"
PARQUET: Final = "parquet"

# A table in a folder, and its column with a picture's path relative to that folder.
METADATA_TABLES: Final = {"gallery.csv": "image", "metadata.csv": "file_name"}
IMAGE_COLUMNS: Final = ("image", "jpg", "jpeg", "png", "bytes", "path", "file_name")


@dataclass(frozen=True)
class Item:
    """One picture, and how to read it.

    Attributes:
        id: unique in the corpus: the path as it was named; inside a tar or Parquet file
            followed by "::" and the member's name or the row's number.
        kind: FILE, TAR or PARQUET.
        place: absolute path or URI of the file.
        offset: TAR, where the member's bytes begin; PARQUET, the row.
        size: TAR, how many bytes; otherwise 0.
        column: PARQUET, the column that holds the bytes.
        metadata: JSON object of what the source says about the picture.
    """

    id: str
    kind: str
    place: str
    offset: int = 0
    size: int = 0
    column: str = ""
    metadata: str = "{}"

    @property
    def source(self) -> str:
        """Where the picture is, for people: the place without options, and the member or row."""
        member = self.id.partition("::")[2]
        return self.place.partition("?")[0] + (f"::{member}" if member else "")


def find(
    inputs: Sequence[str], image_column: str | None = None, metadata: Path | None = None
) -> Iterator[Item]:
    """Every picture that the inputs name, in a stable order; a picture may be named twice.

    A folder is searched for pictures, .tar and .parquet files; its gallery.csv or metadata.csv
    gives metadata to the pictures it lists; so does the CSV file `metadata`, for local files.

    Raises:
        InputError: an input names nothing, or a file cannot be understood.
    """
    known = _known(metadata) if metadata else {}
    for argument in inputs:
        count = 0
        for name, entry in _matches(argument):
            for item in _expand(name, entry, image_column):
                count += 1
                said = known.get(item.place)
                yield replace(item, metadata=_json(said)) if said else item
        if not count:
            raise InputError(f"{argument} holds no picture, .tar or .parquet file")


def read(items: Sequence[Item]) -> list[bytes | OSError]:
    """The encoded bytes of each item, or why they could not be read."""
    columns: dict[tuple[str, str], dict[int, bytes | None]] = {}
    for item in items:
        if item.kind == PARQUET:
            columns.setdefault((item.place, item.column), {})[item.offset] = None
    for (place, column), rows in columns.items():
        rows.update(_parquet_bytes(place, column, sorted(rows)))
    return [_bytes(item, columns) for item in items]


def _bytes(item: Item, columns: dict[tuple[str, str], dict[int, bytes | None]]) -> bytes | OSError:
    if item.kind == PARQUET:
        # Null bytes are an empty picture, which the server refuses in words.
        return columns[item.place, item.column][item.offset] or b""
    filesystem, path = resolve(item.place)
    try:
        with filesystem.open_input_file(path) as file:
            if item.kind == FILE:
                return bytes(file.read())
            file.seek(item.offset)
            data = bytes(file.read(item.size))
    except OSError as error:
        return error
    if len(data) != item.size:
        return OSError(f"{item.place} ends within the member")
    return data


def _matches(argument: str) -> Iterator[tuple[str, str]]:
    """The files and folders of one argument: the name that ids begin with, and the place."""
    if "://" not in argument:
        if os.path.exists(argument):
            yield os.path.normpath(argument), os.path.abspath(argument)
            return
        names = sorted(glob.glob(argument, recursive=True)) if glob.has_magic(argument) else []
        if not names:
            raise InputError(f"{argument} does not exist")
        for name in names:
            yield os.path.normpath(name), os.path.abspath(name)
        return
    path, mark, query = argument.partition("?")
    if not glob.has_magic(path):
        yield path.rstrip("/"), argument
        return
    fixed = path[: min(path.find(sign) for sign in "*[" if sign in path)].rpartition("/")[0]
    scheme = path.partition("://")[0]
    for found in _files(fixed + mark + query):
        name = f"{scheme}://{found}"
        if fnmatch.fnmatchcase(name, path):
            yield name, name + mark + query


def _expand(name: str, place: str, image_column: str | None) -> Iterator[Item]:
    try:
        filesystem, path = resolve(place)
        info = filesystem.get_file_info(path)
    except (StoreError, OSError) as error:
        raise InputError(str(error)) from error
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{name} does not exist")
    if info.type == pafs.FileType.File:
        yield from _in_file(name, place, image_column, {})
        return
    query = place.partition("?")[2]
    scheme = place.partition("://")[0] + "://" if "://" in place else ""
    files = list(_files(place))
    metadata = _folder_metadata(filesystem, path, files)
    for file in files:
        inside = posixpath.relpath(file, path)
        if any(part.startswith(".") for part in inside.split("/")):
            continue
        if file.lower().endswith((*SUFFIXES, ".tar", ".parquet")):
            below = scheme + file + (f"?{query}" if query else "")
            yield from _in_file(f"{name}/{inside}", below, image_column, metadata.get(inside, {}))


def _files(place: str) -> list[str]:
    filesystem, path = resolve(place)
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    return sorted(entry.path for entry in found if entry.type == pafs.FileType.File)


def _folder_metadata(filesystem: Any, path: str, files: Sequence[str]) -> dict[str, dict[str, str]]:
    for table in METADATA_TABLES:
        if f"{path}/{table}" in files:
            with filesystem.open_input_file(f"{path}/{table}") as file:
                return _table(f"{path}/{table}", file.read())
    return {}


def _known(table: Path) -> dict[str, dict[str, str]]:
    """Metadata by absolute path."""
    try:
        rows = _table(str(table), table.read_bytes())
    except OSError as error:
        raise InputError(f"{table} cannot be read ({error.strerror})") from error
    return {os.path.abspath(table.parent / name): facts for name, facts in rows.items()}


def _table(name: str, data: bytes) -> dict[str, dict[str, str]]:
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 ({error})") from error
    keys = [key for key in METADATA_TABLES.values() if key in (rows.fieldnames or ())]
    if not keys:
        raise InputError(f"{name} has neither of the columns {list(METADATA_TABLES.values())}")
    return {
        row.pop(keys[0]): {column: value for column, value in row.items() if value} for row in rows
    }


def _in_file(
    name: str, place: str, image_column: str | None, metadata: dict[str, str]
) -> Iterator[Item]:
    lower = place.partition("?")[0].lower()
    if lower.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        raise InputError(f"{name} is compressed, so that its members cannot be read by themselves")
    if lower.endswith(".tar"):
        yield from _in_tar(name, place)
    elif lower.endswith(".parquet"):
        yield from _in_parquet(name, place, image_column)
    else:
        yield Item(name, FILE, place, metadata=_json(metadata))


def _in_tar(name: str, place: str) -> Iterator[Item]:
    """Members with a picture's suffix; WebDataset's KEY.json, KEY.txt and KEY.cls are metadata."""
    filesystem, path = resolve(place)
    pictures: list[tarfile.TarInfo] = []
    said: dict[str, dict[str, Any]] = {}
    try:
        with filesystem.open_input_file(path) as file, tarfile.open(fileobj=file) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                if not member.isfile():
                    continue
                if member.name.lower().endswith(SUFFIXES):
                    pictures.append(member)
                elif suffix in ("json", "txt", "cls"):
                    text = archive.extractfile(member).read().decode()  # type: ignore[union-attr]
                    facts = json.loads(text) if suffix == "json" else {suffix: text.strip()}
                    said.setdefault(key, {}).update(facts)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{name} is not a readable tar file ({error})") from error
    for member in pictures:
        key = member.name.partition(".")[0]
        yield Item(
            f"{name}::{member.name}",
            TAR,
            place,
            member.offset_data,
            member.size,
            metadata=_json(said.get(key, {})),
        )


def _in_parquet(name: str, place: str, image_column: str | None) -> Iterator[Item]:
    """Rows with bytes (binary, or a struct with `bytes` as Hugging Face writes) or with paths."""
    filesystem, path = resolve(place)
    try:
        file = pq.ParquetFile(filesystem.open_input_file(path))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name} is not a readable Parquet file ({error})") from error
    schema = file.schema_arrow
    column = image_column or next((one for one in IMAGE_COLUMNS if one in schema.names), "")
    if column not in schema.names:
        raise InputError(
            f"{name} has the columns {schema.names}; name the one with pictures or their paths "
            "by --image-column"
        )
    kind = schema.field(column).type
    paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    facts = [
        field.name
        for field in schema
        if field.name != column and not pa.types.is_nested(field.type)
    ]
    facts = [one for one in facts if not pa.types.is_binary(schema.field(one).type)]
    row = 0
    for batch in file.iter_batches(columns=[*facts, *([column] if paths else [])]):
        for record in batch.to_pylist() if batch.num_columns else [{}] * batch.num_rows:
            if paths:
                below = _beside(place, record.pop(column))
                yield Item(below.partition("?")[0], FILE, below, metadata=_json(record))
            else:
                yield Item(f"{name}::{row}", PARQUET, place, row, 0, column, _json(record))
            row += 1


def _beside(place: str, path: str | None) -> str:
    """A path in a Parquet file, absolute or relative to that file."""
    if not path:
        raise InputError(f"{place} holds a row without a path")
    if "://" in path or path.startswith("/"):
        return path
    folder, mark, query = place.partition("?")
    return posixpath.join(posixpath.dirname(folder), path) + mark + query


def _parquet_bytes(place: str, column: str, rows: Sequence[int]) -> dict[int, bytes | None]:
    filesystem, path = resolve(place)
    found: dict[int, bytes | None] = {}
    with filesystem.open_input_file(path) as opened:
        file = pq.ParquetFile(opened)
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            wanted = [row for row in rows if first <= row < first + count]
            if wanted:
                values = file.read_row_group(group, columns=[column]).column(column)
                for row in wanted:
                    value = values[row - first].as_py()
                    found[row] = value.get("bytes") if isinstance(value, dict) else value
            first += count
    return found


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False, sort_keys=True, default=str)


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each id once; the first one named wins."""
    seen: set[str] = set()
    for item in items:
        if item.id not in seen:
            seen.add(item.id)
            yield item
