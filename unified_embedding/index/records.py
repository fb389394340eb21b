"""Rows of metadata: read one at a time out of an Arrow table, and told as plain JSON values."""

import base64
import contextlib
import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ID: Final = "id"

Record = dict[str, Any]

SAID: Final = "metadata"
_NO_TEXT: Final = "\ufffd"  # Unicode's replacement character


class Table:
    """Rows of an Arrow table as dictionaries, without reading the rest of a mapped one."""

    def __init__(self, table: pa.Table) -> None:
        self.arrow = table
        # What a condition had to read value by value, by name and kind; see `where`.
        self.read: dict[tuple[str, str], pa.ChunkedArray] = {}

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __getitem__(self, row: int) -> Record:
        return {
            name: _value(column[row])
            for name, column in zip(self.arrow.column_names, self.arrow.columns, strict=True)
        }

    def id(self, row: int) -> str:
        """The id of a row."""
        return str(_value(self.arrow.column(0)[row]))

    def living(self, alive: NDArray[np.bool_], first: int = 0) -> pa.Table:
        """The rows from `first` to the end of `alive` that it marks.

        A filter goes chunk by chunk; `take` would join the chunks, and more than 2 GB of texts
        have no joined form.
        """
        rows = self.arrow.slice(first, len(alive) - first)
        return rows.filter(pa.array(alive[first:]))


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row's metadata as plain JSON values: our columns, and what the picture's source said.

    The back-fill keeps what a source says as a JSON object in the column `metadata`. Its members
    stand beside our columns and never take the place of one: a member `source` is told as
    `metadata.source`.

    What JSON or PostgreSQL's jsonb cannot hold is told in what they can: NaN and infinity as null,
    NUL and lone surrogates as the replacement character U+FFFD, bytes as base64, dates and other
    objects as text.
    """
    told: dict[str, Any] = plain({k: v for k, v in record.items() if k not in (ID, SAID)})
    for name, value in _said(record.get(SAID)).items():
        while name in told:
            name = f"{SAID}.{name}"
        told[name] = value
    return told


def plain(value: Any) -> Any:
    """A value in the words of strict JSON; see `facts`."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return _text(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_text(str(name)): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case np.generic() | np.ndarray():
            return plain(value.tolist())
        case bytes():
            return base64.b64encode(value).decode()
        case decimal.Decimal():
            return str(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return _text(str(value))


def _said(value: Any) -> dict[str, Any]:
    """The members of a JSON object; anything else stays what it is, under the column's name."""
    if value is None:
        return {}
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            read = plain(json.loads(value))
            return read if isinstance(read, dict) else {SAID: read}
    return {SAID: plain(value)}


def _text(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", _NO_TEXT)


def _value(scalar: Any) -> Any:
    """A cell as a Python object; what Python has no object for, a date of year 10,000, as text."""
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        pass
    kind = scalar.type
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _value(scalar[i]) for i in range(kind.num_fields)}
    if pa.types.is_map(kind) or pa.types.is_nested(kind):
        return [_value(item) for item in scalar.values]
    if pa.types.is_date(kind):
        return str(np.datetime64(scalar.value, "D" if kind.bit_width == 32 else "ms"))
    if pa.types.is_timestamp(kind):
        return str(np.datetime64(scalar.value, kind.unit)) + ("Z" if kind.tz else "")
    if pa.types.is_duration(kind):
        return str(np.timedelta64(scalar.value, kind.unit))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "replace")
    return str(scalar)
