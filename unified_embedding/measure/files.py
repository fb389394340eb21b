"""Result files: they appear whole or not at all, and so do results in a document."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unified_embedding.whole_files import write_whole


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`."""
    write_whole(path, text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows below a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def between_marks(text: str, begin: str, end: str, body: str) -> str:
    """`text` with `body` between its marks `begin` and `end`, on lines of its own.

    Raises:
        ValueError: it lacks these marks.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"lacks the marks {begin} and {end}")
    return f"{before}{begin}\n{body}\n{end}{after}"
