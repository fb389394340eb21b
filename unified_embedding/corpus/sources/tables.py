"""Metadata of a folder's pictures, in a table beside them: CSV, JSON lines or Parquet."""

import csv
import io
import posixpath
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from unified_embedding.corpus.places import open_regular, reason
from unified_embedding.corpus.sources.item import PassedOver
from unified_embedding.corpus.sources.tars import decoded, json_facts
from unified_embedding.corpus.sources.values import flat_columns, is_text, python_values
from unified_embedding.errors import DamagedError, StoreError

# The column with a picture's path relative to the table's folder. The last three are what
# Hugging Face's imagefolder reads (huggingface.co/docs/datasets/image_dataset).
METADATA_TABLES: Final = {
    "gallery.csv": "image",
    "metadata.csv": "file_name",
    "metadata.jsonl": "file_name",
    "metadata.parquet": "file_name",
}
_KEYS: Final = ("image", "file_name")
# csv's own limit of 131,072 characters a field ends the reading with an error.
_FIELD_LIMIT: Final = 2**31 - 1


def read_table(name: str, place: str, passed: PassedOver) -> dict[str, dict[str, Any]]:
    """The facts in a table by the path of the picture, as the table names it.

    A row that makes no sense is counted and left out.

    Raises:
        DamagedError: the table cannot be read, or does not name pictures.
    """
    try:
        file, _ = open_regular(place)
        with file:
            data = file.read()
    except (OSError, StoreError) as error:
        raise DamagedError(f"cannot be read ({reason(error)})") from error
    if name.lower().endswith(".parquet"):
        rows = _parquet_rows(name, data, passed)
    elif name.lower().endswith((".jsonl", ".ndjson")):
        rows = _json_rows(name, data, passed)
    else:
        rows = _csv_rows(name, data, passed)
    found: dict[str, dict[str, Any]] = {}
    for number, row in rows:
        key = next((key for key in _KEYS if key in row), None)
        path = row.pop(key) if key else None
        if not isinstance(path, str) or not path:
            passed.add("rows of a table that name no picture: left out", f"{name}, row {number}")
            continue
        facts = {column: value for column, value in row.items() if value not in (None, "")}
        found[posixpath.normpath(path)] = facts
    return found


def _require_names(columns: list[str]) -> None:
    if not set(_KEYS) & set(columns):
        raise DamagedError(f"has neither of the columns {list(_KEYS)}")


def _csv_rows(name: str, data: bytes, passed: PassedOver) -> Iterator[tuple[int, dict[str, Any]]]:
    text = decoded(name, data, passed)
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        rows = list(_csv_lines(name, text, passed))
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise DamagedError("is empty")
    header = rows[0][1]
    _require_names(header)
    for number, fields in rows[1:]:
        row = f"{name}, row {number}"
        if len(fields) > len(header):
            passed.add("rows of a table with more fields than its header: left out", row)
            continue
        if len(fields) < len(header):
            passed.add("rows of a table with fewer fields than its header: the rest is empty", row)
        yield number, dict(zip(header, fields, strict=False))


def _csv_lines(name: str, text: str, passed: PassedOver) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, numbered from the header's 1."""
    lines = csv.reader(io.StringIO(text, newline=""))
    number = 0
    while True:
        number += 1
        try:
            fields = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            passed.add(
                f"table rows that are not valid CSV ({error}): left out", f"{name}, {number}"
            )
            continue
        if fields:
            yield number, fields


def _json_rows(name: str, data: bytes, passed: PassedOver) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            facts = json_facts(f"{name}, row {number}", line, passed)
            if facts:
                yield number, facts


def _parquet_rows(
    name: str, data: bytes, passed: PassedOver
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        schema = file.schema_arrow
        # One with bytes in such a column holds the pictures themselves.
        _require_names([field.name for field in schema if is_text(field.type)])
        columns = flat_columns(schema)
        table = file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"is not a readable Parquet file ({reason(error)})") from error
    values = [python_values(table.column(one), f"{name}: {one}", passed) for one in columns]
    for number, row in enumerate(zip(*values, strict=True)):
        yield number, dict(zip(columns, row, strict=True))
