"""The manifest: one table that says what every picture is for. Anyone can write one.

CSV (UTF-8, with a header) or Parquet, one row per picture and task. Columns:

| column | required | meaning |
|---|---|---|
| image | yes | path of the picture, relative to the manifest |
| task | yes | browse, camera or shop |
| split | yes | train, validation or test; or gallery: never trained on, never a query |
| domain | yes | where the picture comes from, for instance "catalogue" or "photo" |
| browse_class | | what a browse picture shows |
| camera_category | | the category of a camera picture |
| shop_class | | the class of product in a shop picture |
| shop_instance | | the exact product in a shop picture |
| identity | | what an exact search must find; for evaluation, never a label |
| cluster | | pictures that succeed or fail together, for intervals; default: the identity |

An empty cell means "none": the picture then takes part without that label.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from unified_embedding.errors import DataError
from unified_embedding.whole_files import whole_file

TASKS: Final = ("browse", "camera", "shop")
SPLITS: Final = ("train", "validation", "test", "gallery")
LABELS: Final = {
    "browse": ("browse_class",),
    "camera": ("camera_category",),
    "shop": ("shop_class", "shop_instance"),
}
"""Label columns of each task; the others stay empty in its rows."""
LABEL_COLUMNS: Final = tuple(column for columns in LABELS.values() for column in columns)
"""Every label column, in the order of the heads."""

REQUIRED: Final = ("image", "task", "split", "domain")
COLUMNS: Final = (
    *("image", "task", "browse_class", "camera_category", "shop_class", "shop_instance"),
    *("domain", "split", "identity", "cluster"),
)

# Columns whose values may not occur in two of train, validation and test.
_IDENTITIES: Final = ("identity", "cluster", "browse_class", "shop_instance")
_DISJOINT: Final = ("train", "validation", "test")

Row = Mapping[str, str]


def read_manifest(path: Path, check_files: bool = True) -> list[dict[str, str]]:
    """Read and check a manifest; every row holds all of `COLUMNS`, "" where a cell is empty.

    Args:
        path: a .csv or .parquet file.
        check_files: also check that every picture is there.

    Raises:
        DataError: unreadable, or a row is wrong; the message names the row as a person counts
            it (the first row below the header is row 1) and what to write instead.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise DataError(f"{path} is neither .csv nor .parquet")
    try:
        header, rows = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except FileNotFoundError:
        raise DataError(f"manifest {path} does not exist; `make data` prepares one") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"manifest {path} cannot be read: {error}") from error
    _check_header(path, header)
    complete = [{column: row.get(column, "") for column in COLUMNS} for row in rows]
    check_rows(complete, str(path), path.parent if check_files else None)
    return complete


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV manifest with all of `COLUMNS`; it appears whole or not at all."""
    with (
        whole_file(path) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_rows(rows: list[dict[str, str]], source: str, folder: Path | None = None) -> None:
    """Check rows one by one, then against one another.

    Args:
        rows: with all of `COLUMNS`.
        source: named in errors.
        folder: where `image` is looked up; None skips that.

    Raises:
        DataError: names the bad row.
    """
    if not rows:
        raise DataError(f"{source} has no rows")
    for number, row in enumerate(rows, 1):
        problem = _problem(row, folder)
        if problem:
            raise DataError(f"{source}, row {number} ({row['image']!r}): {problem}")
    _check_repeats(rows, source)
    _check_splits(rows, source)


def summary(rows: Iterable[Row]) -> str:
    """One line per task, split and domain with its number of rows."""
    counts = Counter((row["task"], row["split"], row["domain"]) for row in rows)
    return "\n".join(
        f"{task:8} {split:12} {domain:14} {count:>7,}"
        for (task, split, domain), count in sorted(counts.items())
    )


def _problem(row: Row, folder: Path | None) -> str | None:
    for column in REQUIRED:
        if not row[column].strip():
            return f"{column} is empty"
    for column, allowed in (("task", TASKS), ("split", SPLITS)):
        if row[column] not in allowed:
            return f"{column} {row[column]!r} is not one of {', '.join(allowed)}"
    for task, columns in LABELS.items():
        for column in columns:
            if row[column] and task != row["task"]:
                return f"{column} is filled, but it is a label of {task}, not of {row['task']}"
    for column, value in row.items():
        if value != value.strip():
            return f"{column} {value!r} begins or ends with a space"
    return _image_problem(row["image"], folder)


def _image_problem(image: str, folder: Path | None) -> str | None:
    path = PurePosixPath(image)
    if path.is_absolute() or ".." in path.parts or "\\" in image:
        return "image must be a path below the manifest's folder, with forward slashes"
    if folder is not None and not (folder / image).is_file():
        return f"{folder / image} is not there"
    return None


def _check_repeats(rows: list[dict[str, str]], source: str) -> None:
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, 1):
        key = row["image"], row["task"]
        if key in seen:
            raise DataError(
                f"{source}, row {number} ({row['image']!r}): repeats row {seen[key]} "
                f"of the same task; a picture belongs to a task once"
            )
        seen[key] = number


def _check_splits(rows: list[dict[str, str]], source: str) -> None:
    """Identities must not cross splits: a test that shares them measures memory."""
    first: dict[tuple[str, str], tuple[str, int]] = {}
    for number, row in enumerate(rows, 1):
        if row["split"] not in _DISJOINT:
            continue
        for column in _IDENTITIES:
            if not row[column]:
                continue
            split, earlier = first.setdefault((column, row[column]), (row["split"], number))
            if split != row["split"]:
                raise DataError(
                    f"{source}, row {number} ({row['image']!r}): {column} {row[column]!r} is in "
                    f"{row['split']} here and in {split} in row {earlier}; "
                    "splits are drawn by identity, never by picture"
                )


def _check_header(path: Path, header: list[str]) -> None:
    missing = [column for column in REQUIRED if column not in header]
    unknown = [column for column in header if column not in COLUMNS]
    if missing or unknown or len(set(header)) != len(header):
        raise DataError(
            f"manifest {path} has the columns {header}; missing {missing}, unknown {unknown}; "
            f"allowed, each once: {', '.join(COLUMNS)}"
        )


def _read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        rows: list[dict[str, str]] = []
        for cells in reader:
            if len(cells) != len(header):
                raise ValueError(
                    f"row {len(rows) + 1} has {len(cells)} cells, the header {len(header)}"
                )
            rows.append(dict(zip(header, cells, strict=True)))
    return header, rows


def _read_parquet(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path} is Parquet, which needs pyarrow (the extra `client`); CSV needs nothing"
        ) from None
    table = parquet.read_table(path)
    rows = [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in table.to_pylist()
    ]
    return list(table.column_names), rows
