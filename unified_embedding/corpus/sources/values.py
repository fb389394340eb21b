"""Columns of Arrow and Parquet as Python values, whatever they hold."""

from typing import Any

import pyarrow as pa

from unified_embedding.corpus.sources.item import PassedOver


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values: of a dictionary's, of an extension's storage."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether the values are strings."""
    kind = plain(kind)
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the values are bytes."""
    kind = plain(kind)
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def flat_columns(schema: pa.Schema) -> list[str]:
    """The columns whose values fit into a picture's metadata: neither nested nor bytes."""
    return [
        field.name
        for field in schema
        if schema.names.count(field.name) == 1
        and not pa.types.is_nested(plain(field.type))
        and not is_bytes(field.type)
    ]


def python_values(column: Any, name: str, passed: PassedOver) -> list[Any]:
    """An array's values; those that Python has no value for as text, or else None, counted.

    Such are dates beyond the year 9999, nanoseconds, and text that is not UTF-8.
    """
    try:
        return list(column.to_pylist())
    except (pa.ArrowException, ValueError, OverflowError, TypeError, OSError):
        pass
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in python_values(chunk, name, passed)]
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        known = python_values(column.dictionary, name, passed)
        return [None if place is None else known[place] for place in column.indices.to_pylist()]
    return [_value(column, row, name, passed) for row in range(len(column))]


def _value(column: Any, row: int, name: str, passed: PassedOver) -> Any:
    try:
        return column[row].as_py()
    except (pa.ArrowException, ValueError, OverflowError, TypeError, OSError):
        pass
    one = column.slice(row, 1)
    try:
        if is_text(column.type):
            # Undecodable bytes are kept as a file's name keeps them.
            return one.cast(pa.binary())[0].as_py().decode("utf-8", "surrogateescape")
        return one.cast(pa.string())[0].as_py()
    except (pa.ArrowException, ValueError, OverflowError, TypeError, OSError):
        passed.add("values of a table that cannot be read: left out", name)
        return None


def usable(schema: pa.Schema) -> list[str]:
    """The columns that may hold pictures or their paths."""
    return [
        field.name
        for field in schema
        if is_text(field.type) or is_bytes(field.type) or struct_fields(field.type)
    ]


def struct_fields(kind: pa.DataType) -> set[str]:
    """Which of `bytes` and `path` a struct holds, as Hugging Face's Image feature does."""
    kind = plain(kind)
    if not pa.types.is_struct(kind):
        return set()
    fields = {kind.field(number).name: kind.field(number).type for number in range(len(kind))}
    held = {"bytes"} if "bytes" in fields and is_bytes(fields["bytes"]) else set()
    return held | ({"path"} if "path" in fields and is_text(fields["path"]) else set())
