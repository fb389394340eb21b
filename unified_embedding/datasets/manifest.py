"""The manifest: one table that says what every picture is for. Anyone can write one.

CSV (UTF-8, with a header) or Parquet, one row per picture and task. Columns:

| column | required | meaning |
|---|---|---|
| image | yes | path of the picture, relative to the manifest |
| task | yes | a name of tasks.yaml |
| split | yes | train, validation or test; or gallery: never trained on, never a query |
| domain | yes | where the picture comes from, for instance "catalogue" or "photo" |
| labels | | the label columns of the tasks in tasks.yaml; each for its own task |
| identity | | what an exact search must find; for evaluation, never a label |
| cluster | | pictures that succeed or fail together, for intervals; default: the identity |

An empty cell means "none": the picture then takes part without that label.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from unified_embedding.datasets.task_table import (
    TASKS,
    TASKS_FILE,
    TaskTable,
    label_columns,
    tasks_beside,
)
from unified_embedding.errors import DataError, shown
from unified_embedding.whole_files import whole_file

SPLITS: Final = ("train", "validation", "test", "gallery")
REQUIRED: Final = ("image", "task", "split", "domain")


def columns_of(tasks: TaskTable) -> tuple[str, ...]:
    """Every column of a manifest of these tasks."""
    return ("image", "task", *label_columns(tasks), "domain", "split", "identity", "cluster")


COLUMNS: Final = columns_of(TASKS)
"""Of the shipped tasks."""

_DISJOINT: Final = ("train", "validation", "test")

Row = Mapping[str, str]


def read_manifest(path: Path, check_files: bool = True) -> list[dict[str, str]]:
    """Read and check a manifest; every row holds all of its columns, "" where a cell is empty.

    The columns are those of the tasks that are shipped and of the file tasks.yaml beside it.

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
    tasks = tasks_beside(path)
    columns = columns_of(tasks)
    _check_header(path, header, columns)
    complete = [{column: row.get(column, "") for column in columns} for row in rows]
    check_rows(complete, str(path), path.parent if check_files else None, tasks)
    return complete


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV manifest with all of its columns; it appears whole or not at all."""
    with (
        whole_file(path) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(
            file, columns_of(tasks_beside(path)), restval="", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def check_rows(
    rows: list[dict[str, str]], source: str, folder: Path | None = None, tasks: TaskTable = TASKS
) -> None:
    """Check rows one by one, then against one another.

    Args:
        rows: with all columns of `tasks`.
        source: named in errors.
        folder: where `image` is looked up; None skips that.
        tasks: that rows may name.

    Raises:
        DataError: names the bad row.
    """
    if not rows:
        raise DataError(f"{source} has no rows")
    for number, row in enumerate(rows, 1):
        problem = _problem(row, folder, tasks)
        if problem:
            raise DataError(f"{source}, row {number} ({row['image']!r}): {problem}")
    _check_repeats(rows, source)
    instances = [task.instance for task in tasks.values() if task.instance]
    _check_splits(rows, source, ["identity", "cluster", *instances])


def summary(rows: Iterable[Row]) -> str:
    """One line per task, split and domain with its number of rows."""
    counts = Counter((row["task"], row["split"], row["domain"]) for row in rows)
    return "\n".join(
        f"{task:8} {split:12} {domain:14} {count:>7,}"
        for (task, split, domain), count in sorted(counts.items())
    )


def _problem(row: Row, folder: Path | None, tasks: TaskTable) -> str | None:
    for column in REQUIRED:
        if not row[column].strip():
            return f"{column} is empty"
    for column, allowed in (("task", tuple(tasks)), ("split", SPLITS)):
        if row[column] not in allowed:
            return f"{column} {shown(row[column])} is not one of {', '.join(allowed)}"
    for task, spec in tasks.items():
        for column in spec.labels:
            if row[column] and task != row["task"]:
                return (
                    f"{column} is filled, but it is a label of {task}, not of {row['task']}; leave "
                    "it empty (a run's data.shared_labels gives a task the labels of another)"
                )
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


def _check_splits(rows: list[dict[str, str]], source: str, identities: list[str]) -> None:
    """Identities must not cross splits: a test that shares them measures memory."""
    first: dict[tuple[str, str], tuple[str, int]] = {}
    for number, row in enumerate(rows, 1):
        if row["split"] not in _DISJOINT:
            continue
        for column in identities:
            if not row[column]:
                continue
            split, earlier = first.setdefault((column, row[column]), (row["split"], number))
            if split != row["split"]:
                raise DataError(
                    f"{source}, row {number} ({row['image']!r}): {column} {row[column]!r} is in "
                    f"{row['split']} here and in {split} in row {earlier}; "
                    "splits are drawn by identity, never by picture"
                )


def _check_header(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    missing = [column for column in REQUIRED if column not in header]
    unknown = [column for column in header if column not in columns]
    if missing or unknown or len(set(header)) != len(header):
        raise DataError(
            f"manifest {path} has the columns {header}; missing {missing}, unknown {unknown}; "
            f"allowed, each once: {', '.join(columns)} (labels of further tasks: {TASKS_FILE})"
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
