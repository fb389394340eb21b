"""What training and validation read: pictures with a task, labels, a domain and a split."""

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.datasets import made_up
from unified_embedding.datasets.manifest import Row, read_manifest
from unified_embedding.datasets.task_table import (
    TASKS,
    TaskTable,
    label_columns,
    tasks_beside,
)
from unified_embedding.errors import DataError, TrainingError, shown
from unified_embedding.training.config import DataConfig, MadeUp, manifest_path
from unified_embedding.training.subsampler import UNLABELLED

_MADE_UP_SIDE: Final = 96


@dataclass(frozen=True)
class Examples:
    """Rows of a manifest, column by column; N rows.

    Attributes:
        images: names that `read` takes.
        task: str [N].
        domain: str [N].
        labels: column -> str [N], "" where a row carries no such label.
        read: name -> encoded bytes of the picture.
        tasks: that rows name.
    """

    images: list[str]
    task: NDArray[np.str_]
    domain: NDArray[np.str_]
    labels: Mapping[str, NDArray[np.str_]]
    read: Callable[[str], bytes]
    tasks: TaskTable = field(default_factory=lambda: TASKS)

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """Hash of every row; a run is resumed on the very rows that it began with."""
        digest = hashlib.sha256()
        columns = [self.task, self.domain, *self.labels.values()]
        for column in (self.images, *(values.tolist() for values in columns)):
            digest.update("\0".join(column).encode())
            digest.update(b"\n")
        return digest.hexdigest()[:16]

    def rows_of(self, task: str) -> NDArray[np.int64]:
        """Row numbers of one task."""
        return np.flatnonzero(self.task == task)

    def classes(self, column: str) -> list[str]:
        """The distinct labels of `column`, sorted."""
        values = self.labels[column]
        return sorted(np.unique(values[values != ""]).tolist())

    def encoded(self, column: str, classes: list[str]) -> NDArray[np.int64]:
        """Class numbers of `column`, int64 [N]; `UNLABELLED` where a row has none.

        Raises:
            TrainingError: a label is not among `classes` (sorted).
        """
        values = self.labels[column]
        known = np.asarray(classes, dtype=np.str_)
        numbers: NDArray[np.int64] = np.searchsorted(known, values).astype(np.int64)
        found = known[np.minimum(numbers, len(known) - 1)] == values
        strange = (values != "") & ~found
        if strange.any():
            raise TrainingError(
                f"{column} {str(values[strange][0])!r} is not a class of this model"
            )
        numbers[values == ""] = UNLABELLED
        return numbers


def load_rows(data: DataConfig) -> tuple[list[Row], Callable[[str], bytes]]:
    """All manifest rows that `data` names, and what reads their pictures.

    Raises:
        DataError: the manifest is missing or a row of it is wrong.
    """
    path = manifest_path(data.manifest)
    if path is None:
        assert data.made_up is not None  # the configuration has one of the two
        return made_up_rows(data.made_up), read_made_up
    return list(read_manifest(path)), FolderReader(path.parent)


def select(rows: list[Row], read: Callable[[str], bytes], data: DataConfig, split: str) -> Examples:
    """The rows of one split and of the configured tasks and labels.

    Training rows alone share labels: what validation and evaluation search stays as it is.

    Raises:
        DataError: `data.shared_labels` does not fit the rows.
    """
    of_split = [row for row in rows if row["split"] == split]
    kept = [row for row in of_split if row["task"] in data.tasks]
    path = manifest_path(data.manifest)
    tasks = TASKS if path is None else tasks_beside(path)
    if split == "train":
        for column, others in (data.shared_labels or {}).items():
            kept = _with_shared_label(kept, column, others, _label_by_identity(of_split, column))
    return from_rows(kept, read, data.labels, tasks)


def _label_by_identity(rows: list[Row], column: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in rows:
        identity, label = row.get("identity"), row.get(column)
        if identity and label and found.setdefault(identity, label) != label:
            raise DataError(
                f"shared_labels.{column}: rows of the identity {shown(identity)} carry both "
                f"{shown(found[identity])} and {shown(label)}; one of them must be corrected"
            )
    return found


def _with_shared_label(
    rows: list[Row], column: str, tasks: list[str], labels: Mapping[str, str]
) -> list[Row]:
    """`rows`, those of `tasks` with the label of their identity in `column`, if it has one."""
    found = [
        {**row, column: labels[row["identity"]]}
        if row["task"] in tasks and row.get("identity") in labels
        else row
        for row in rows
    ]
    for task in tasks:
        if not any(row["task"] == task and row.get(column) for row in found):
            raise DataError(
                f"shared_labels.{column}: no training row of {task} has an `identity` of which a "
                f"row carries {column}"
            )
    return found


def from_rows(
    rows: list[Row],
    read: Callable[[str], bytes],
    labels: Iterable[str] | None = None,
    tasks: TaskTable = TASKS,
) -> Examples:
    """Turn manifest rows into columns, keeping the label columns `labels`, or all of `tasks`."""
    chosen = label_columns(tasks) if labels is None else labels
    return Examples(
        images=[row["image"] for row in rows],
        task=np.array([row["task"] for row in rows], dtype=np.str_),
        domain=np.array([row["domain"] for row in rows], dtype=np.str_),
        labels={c: np.array([row.get(c, "") for row in rows], dtype=np.str_) for c in chosen},
        read=read,
        tasks=tasks,
    )


@dataclass(frozen=True)
class FolderReader:
    """Reads pictures below a folder."""

    folder: Path

    def __call__(self, image: str) -> bytes:
        """Encoded bytes of `image`. Raises DataError naming a file that is not there."""
        try:
            return (self.folder / image).read_bytes()
        except OSError as error:
            raise DataError(f"the manifest names {self.folder / image}: {error}") from error


def read_made_up(image: str) -> bytes:
    """Draw the picture that a made-up name describes, as BMP bytes."""
    label, variant = image.split(":")
    out = io.BytesIO()
    made_up.picture(int(label), int(variant), _MADE_UP_SIDE).save(out, "BMP")
    return out.getvalue()


def made_up_rows(wanted: MadeUp) -> list[Row]:
    """Manifest rows of made-up pictures; validation has a quarter as many classes, its own."""
    rows: list[Row] = []
    for kind, (task, spec) in enumerate(TASKS.items()):
        classes = wanted.classes(spec.identity)
        for number in range(classes + max(2, classes // 4) if classes else 0):
            labels = {spec.identity: f"{task} {number}"}
            for column in spec.labels:
                # Every fourth product has no class, as odd ones have none in real catalogues.
                if column != spec.identity and wanted.classes(column) and number % 4 != 3:
                    labels[column] = f"kind {number % wanted.classes(column)}"
            for variant in range(wanted.per_class):
                rows.append(
                    {
                        "image": f"{kind + len(TASKS) * number}:{variant}",
                        "task": task,
                        "domain": ("web", "catalogue")[variant % 2],
                        "split": "train" if number < classes else "validation",
                        **labels,
                    }
                )
    return rows
