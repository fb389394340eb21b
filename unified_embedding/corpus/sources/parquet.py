"""Pictures in Parquet: bytes, structs of bytes and path as Hugging Face writes, or paths."""

import base64
import binascii
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unified_embedding.corpus.places import (
    folder_of,
    is_below,
    is_uri,
    local_path,
    local_place,
    real_path,
    reason,
    shown,
    split_options,
    with_options,
)
from unified_embedding.corpus.sources.column import ColumnReader, closing_parquet, open_parquet
from unified_embedding.corpus.sources.item import LISTED, PARQUET, Item, PassedOver
from unified_embedding.corpus.sources.values import (
    flat_columns,
    is_bytes,
    is_text,
    python_values,
    struct_fields,
    usable,
)
from unified_embedding.corpus.text import printable
from unified_embedding.errors import DamagedError, DamagedRows, InputError, StoreError

IMAGE_COLUMNS: Final = ("image", "jpg", "jpeg", "png", "bytes", "path", "file_name")
_SAMPLE: Final = 16
_MANY_ROWS: Final = 1024
# PATH_MAX of Linux.
_LONGEST: Final = 4096
_WEB: Final = re.compile(r"(https?|ftp)://", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A Parquet file that is searched for pictures.

    Attributes:
        name: what its ids begin with.
        place: where it is.
        image_column: the column asked for, or None.
        roots: folders that its paths may lead into, beside its own.
    """

    name: str
    place: str
    image_column: str | None
    roots: Sequence[str]

    @property
    def allowed(self) -> tuple[str, ...]:
        """The folders that paths may lead into."""
        return (folder_of(self.place), *self.roots)


def in_parquet(table: Table, passed: PassedOver) -> Iterator[Item]:
    """The pictures of a Parquet file, one for each row.

    Raises:
        InputError: no column holds pictures or paths, or the one asked for holds something else.
        DamagedError: it is no Parquet file.
    """
    try:
        file = open_parquet(table.place)
        schema = file.schema_arrow
    except StoreError as error:
        raise InputError(str(error)) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(f"is not a readable Parquet file ({reason(error)})") from error
    with closing_parquet(file):
        column = _chosen(table, schema)
        kind = schema.field(column).type
        facts = [one for one in flat_columns(schema) if one != column]
        if is_text(kind):
            _require_paths(table, file, column)
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            said = _facts(table, file, group, facts, passed)
            named = _paths(table, file, group, column, kind, passed)
            for row, path, known in zip(range(first, first + rows), named, said, strict=True):
                name = f"{table.name}::{row}"
                yield _item(table, row, column, kind, path, passed.facts(name, known))
            first += rows


def _chosen(table: Table, schema: pa.Schema) -> str:
    """The column with pictures or paths. Raises InputError, naming the column and the remedy."""
    column = table.image_column or next((one for one in IMAGE_COLUMNS if one in schema.names), "")
    choices = f"may be {usable(schema)}" if usable(schema) else "none of them can be"
    remedy = f"name the one with pictures or their paths by --image-column ({choices})"
    if column not in schema.names:
        raise InputError(f"{table.name} has the columns {schema.names}; {remedy}")
    if schema.names.count(column) > 1:
        raise InputError(f"{table.name} has more than one column {column}; {remedy}")
    kind = schema.field(column).type
    if not (is_text(kind) or is_bytes(kind) or struct_fields(kind)):
        raise InputError(f"{table.name}: the column {column} holds {kind}; {remedy}")
    return column


def _require_paths(table: Table, file: pq.ParquetFile, column: str) -> None:
    """Look at the first texts of a column. Raises InputError when none of them is a path."""
    texts: list[str] = []
    with suppress(DamagedRows):
        for group in range(file.num_row_groups):
            reader = ColumnReader(file, group, column)
            while reader.at < reader.rows and len(texts) < _SAMPLE:
                values = python_values(reader.take(_SAMPLE), column, PassedOver())
                texts += [value for value in values if value]
    if not texts:
        return
    where = f"{table.name}: the column {column} holds"
    if all(_is_base64(text) for text in texts):
        raise InputError(
            f"{where} base64 text, not paths: decode it into a column of bytes, or name another "
            "by --image-column"
        )
    if all(_WEB.match(text) for text in texts):
        raise InputError(
            f"{where} web addresses, which are not downloaded: download the pictures first, or "
            "name another column by --image-column"
        )
    if all(_listed(table, text)[2] == _OUTSIDE for text in texts):
        raise InputError(
            f"{where} paths outside {shown(folder_of(table.place))}, such as "
            f"{printable(texts[0])[:80]}; allow them by --root DIR"
        )


def _is_base64(text: str) -> bool:
    if text.startswith("data:"):
        return True
    # Shorter texts, and those with dots or colons, may well be paths.
    if len(text) < 64:
        return False
    try:
        base64.b64decode(text[: len(text) // 4 * 4].strip(), validate=True)
    except (binascii.Error, ValueError):
        return False
    return "/" not in text or not os.path.exists(os.path.dirname(text)) or len(text) > 4096


def _facts(
    table: Table, file: pq.ParquetFile, group: int, columns: Sequence[str], passed: PassedOver
) -> Iterator[dict[str, Any]]:
    """The metadata of each row; a column that is damaged ends, and is counted."""
    rows = file.metadata.row_group(group).num_rows
    readers = {column: ColumnReader(file, group, column) for column in columns}
    done = 0
    while done < rows:
        count = min(_MANY_ROWS, rows - done)
        values = {
            column: _values(reader, count, f"{table.name}: {column}", passed)
            for column, reader in readers.items()
        }
        for row in range(count):
            yield {column: found[row] for column, found in values.items() if row < len(found)}
        for column in [one for one, found in values.items() if len(found) < count]:
            lost = f"{table.name}: {column}, from row {done + len(values[column])} of group {group}"
            passed.add("damaged columns of a table: left out from there", lost)
            del readers[column]
        done += count


def _values(reader: ColumnReader, count: int, name: str, passed: PassedOver) -> list[Any]:
    """Up to `count` values; fewer when the column is damaged."""
    found: list[Any] = []
    with suppress(DamagedRows):
        while len(found) < count:
            found += python_values(reader.take(count - len(found)), name, passed)
    return found


_BYTES: Final = ""
_DAMAGED: Final = "\0damaged"


def _paths(
    table: Table,
    file: pq.ParquetFile,
    group: int,
    column: str,
    kind: pa.DataType,
    passed: PassedOver,
) -> Iterator[str | None]:
    """For each row of a group the picture's path; `_BYTES` where the row holds the picture."""
    rows = file.metadata.row_group(group).num_rows
    fields = struct_fields(kind)
    if is_bytes(kind) or fields == {"bytes"} or (fields and _no_nulls(file, group, column)):
        for _ in range(rows):
            yield _BYTES
        return
    paths = ColumnReader(file, group, f"{column}.path" if fields else column)
    there = ColumnReader(file, group, f"{column}.bytes") if "bytes" in fields else None
    done = 0
    while done < rows:
        count = min(_MANY_ROWS, rows - done)
        found: list[Any] = []
        with suppress(DamagedRows):
            while len(found) < count:
                piece = paths.take(count - len(found))
                piece = pc.struct_field(piece, "path") if fields else piece
                found += python_values(piece, f"{table.name}: {column}", passed)
        held = _held(there, count) if there else [False] * count
        for row in range(count):
            if held[row]:
                yield _BYTES
            else:
                yield found[row] if row < len(found) else _DAMAGED
        done += count


def _held(there: ColumnReader, count: int) -> list[bool]:
    """Which rows hold bytes. A damaged row is taken for one that does: reading it will tell."""
    held: list[bool] = []
    with suppress(DamagedRows):
        while len(held) < count:
            piece = pc.struct_field(there.take(count - len(held)), "bytes")
            held += piece.is_valid().to_pylist()
    return held + [True] * (count - len(held))


def _no_nulls(file: pq.ParquetFile, group: int, column: str) -> bool:
    """Whether the statistics say that every row holds bytes."""
    leaf = f"{column}.bytes"
    numbers = [n for n in range(len(file.schema)) if file.schema.column(n).path == leaf]
    if len(numbers) != 1:
        return False
    try:
        # pyarrow ends the process at a damaged chunk's metadata; reading the chunk only raises.
        ColumnReader(file, group, leaf).take(1)
    except DamagedRows:
        return False
    known = file.metadata.row_group(group).column(numbers[0]).statistics
    return bool(known and known.has_null_count and known.null_count == 0)


def _item(
    table: Table, row: int, column: str, kind: pa.DataType, path: str | None, metadata: str
) -> Item:
    name = f"{table.name}::{row}"
    if path == _BYTES and not is_text(kind):
        leaf = f"{column}.bytes" if struct_fields(kind) else column
        return Item(name, PARQUET, table.place, row, 0, leaf, metadata)
    if path == _DAMAGED:
        problem = "the row's path cannot be read: the column is damaged from here on"
        return Item(name, PARQUET, table.place, row, 0, column, metadata, problem=problem)
    if not path:
        problem = "the row names no file"
        if struct_fields(kind):
            problem = "the row holds neither a picture nor a path"
        return Item(name, PARQUET, table.place, row, 0, column, metadata, problem=problem)
    named, place, problem = _listed(table, path)
    if struct_fields(kind) or not named:
        named, place = name, place or table.place
    return Item(named, LISTED, place, metadata=metadata, problem=problem)


_OUTSIDE: Final = "it lies outside the table's folder; allow its folder by --root DIR"


def _listed(table: Table, path: str) -> tuple[str, str, str]:
    """A path in the table: as an id, as a place, and what is wrong with it."""
    if len(path) > _LONGEST:
        return "", "", f"its path has {len(path):,} characters"
    if _WEB.match(path):
        return printable(path), printable(path), "it is a web address; pictures are not downloaded"
    if "\0" in path:
        return printable(path), printable(path), "its path holds a NUL character"
    if is_uri(path):
        place = path
    elif is_uri(table.place) and not path.startswith("/"):
        folder, options = split_options(folder_of(table.place))
        scheme, _, rest = folder.partition("://")
        key = posixpath.normpath(posixpath.join(rest, path))
        place = with_options(f"{scheme}://{key}", options)
    else:
        folder = "/" if is_uri(table.place) else local_path(folder_of(table.place))
        place = local_place(os.path.normpath(os.path.join(folder, path)))
    named = shown(place)
    try:
        if not is_below(place, table.allowed):
            return named, place, _OUTSIDE
        if not is_uri(place):
            place = local_place(real_path(local_path(place)))
        return named, place, ""
    except (OSError, ValueError) as error:
        return named, place, f"it cannot be read ({reason(error)})"
