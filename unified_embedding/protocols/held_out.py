"""The pictures of an evaluation: queries of the test split, and the galleries they search."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.datasets.task_table import TASKS, TaskSpec, TaskTable
from unified_embedding.errors import DataError

_FILE_COLUMNS: Final = ("image", "sha256", "domain", "trained", "cluster")


def labels_of(tasks: TaskTable) -> list[str]:
    """What a right answer shares with its query: a task's thing or its category, sorted."""
    return sorted([*tasks, *(task.category_key for task in tasks.values() if task.category)])


@dataclass(frozen=True, eq=False)
class HeldOut:
    """N pictures with what each is for; row i of every array belongs to the i-th picture.

    Attributes:
        folder: where the pictures are.
        images: paths below `folder`, each once.
        sha256: of each file, hex.
        domain: str [N], for instance an emoji design or "catalogue".
        trained: bool [N]; whether training saw other pictures of this domain, in this task.
        seen: bool [N]; whether training saw this picture's product or concept, in any task.
        cluster: str [N]; pictures that succeed or fail together.
        labels: one of `labels_of` -> str [N], "" where a picture has none.
        query: task -> bool [N], the test queries.
        gallery: task -> bool [N], what they search. Training identities stay in as distractors.
        tasks: whose searches these pictures are for.
    """

    folder: Path
    images: tuple[str, ...]
    sha256: tuple[str, ...]
    domain: NDArray[np.str_]
    trained: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    cluster: NDArray[np.str_]
    labels: Mapping[str, NDArray[np.str_]]
    query: Mapping[str, NDArray[np.bool_]]
    gallery: Mapping[str, NDArray[np.bool_]]
    tasks: TaskTable = field(default_factory=lambda: TASKS)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> bytes:
        """Encoded bytes of one picture. Raises DataError when its file is gone."""
        return _read(self.folder, self.images[row])

    def table(self) -> str:
        """What decides every figure but `seen`, as CSV sorted by image: what is frozen."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        labels = labels_of(self.tasks)
        roles = [f"{task}_{role}" for task in self.tasks for role in ("query", "gallery")]
        writer.writerow([*_FILE_COLUMNS, *labels, *roles])
        for row in sorted(range(len(self)), key=lambda row: self.images[row]):
            writer.writerow(
                [
                    self.images[row],
                    self.sha256[row],
                    self.domain[row],
                    int(self.trained[row]),
                    self.cluster[row],
                    *(self.labels[label][row] for label in labels),
                    *(
                        int(role[task][row])
                        for task in self.tasks
                        for role in (self.query, self.gallery)
                    ),
                ]
            )
        return text.getvalue()

    def seen_table(self) -> str:
        """`seen` as CSV sorted by image; apart from `table`, whose digest is published."""
        lines = (
            f"{image},{int(seen)}\n" for image, seen in zip(self.images, self.seen, strict=True)
        )
        return "image,seen\n" + "".join(sorted(lines))

    def digest(self) -> str:
        """Twelve hex digits of `table`: names the test set in everything that is measured."""
        return hashlib.sha256(self.table().encode()).hexdigest()[:12]


def held_out(rows: Iterable[Mapping[str, str]], folder: Path, tasks: TaskTable = TASKS) -> HeldOut:
    """Collect the pictures that the test split of a manifest needs.

    A task of `search: pairs`: every picture is in the gallery, test pictures are queries. The
    others: pictures of the task's gallery domains are the gallery, of all splits, and the other
    test pictures are queries; where there is no such domain, the pictures of the splits test and
    gallery are searched by those of test.

    Args:
        rows: of `read_manifest`.
        folder: where `image` is looked up.
        tasks: that rows name.

    Raises:
        DataError: no test query at all, or a picture is missing.
    """
    pictures = _gather(rows, tasks)
    if not any(picture.query for picture in pictures):
        raise DataError(
            "the manifest has no test queries: no row of the split test can be searched"
        )
    hashes = [hashlib.sha256(_read(folder, p.image)).hexdigest() for p in pictures]
    return _arrange(pictures, folder, hashes, tasks)


def of_validation(rows: Iterable[Mapping[str, str]], tasks: TaskTable = TASKS) -> HeldOut:
    """The same roles for rows of the validation split, whose pictures are read elsewhere.

    No picture shows what training saw, every domain was trained on, and nothing is hashed.
    """
    pictures = _gather(({**row, "split": "test"} for row in rows), tasks)
    found = _arrange(pictures, Path(), (), tasks)
    return replace(found, trained=np.ones(len(found), dtype=np.bool_))


def _gather(rows: Iterable[Mapping[str, str]], tasks: TaskTable) -> list["_Picture"]:
    found: dict[str, _Picture] = {}
    of_task: dict[str, list[Mapping[str, str]]] = {task: [] for task in tasks}
    for row in rows:
        of_task[row["task"]].append(row)
    seen = {
        _answer(row, tasks[task])
        for task, members in of_task.items()
        for row in members
        if _is_training(row)
    }
    for task, members in of_task.items():
        _collect(tasks[task], members, found, seen)
    return list(found.values())


def _arrange(
    pictures: list["_Picture"], folder: Path, sha256: Iterable[str], tasks: TaskTable
) -> HeldOut:
    return HeldOut(
        folder=folder,
        images=tuple(picture.image for picture in pictures),
        sha256=tuple(sha256),
        domain=np.array([picture.domain for picture in pictures], dtype=np.str_),
        trained=np.array([picture.trained for picture in pictures], dtype=np.bool_),
        seen=np.array([picture.seen for picture in pictures], dtype=np.bool_),
        cluster=np.array([picture.cluster for picture in pictures], dtype=np.str_),
        labels={
            label: np.array([p.labels.get(label, "") for p in pictures], dtype=np.str_)
            for label in labels_of(tasks)
        },
        query={t: np.array([t in p.query for p in pictures], dtype=np.bool_) for t in tasks},
        gallery={t: np.array([t in p.gallery for p in pictures], dtype=np.bool_) for t in tasks},
        tasks=tasks,
    )


class _Picture:
    """One picture, gathered from its rows: the same file may serve several tasks."""

    def __init__(self, row: Mapping[str, str]) -> None:
        self.image, self.domain = row["image"], row["domain"]
        self.trained = self.seen = False
        self.cluster = ""
        self.labels: dict[str, str] = {}
        self.query: set[str] = set()
        self.gallery: set[str] = set()


def _is_training(row: Mapping[str, str]) -> bool:
    return row["split"] == "train"


def _answer(row: Mapping[str, str], task: TaskSpec) -> str:
    """What an exact search for this picture must find; the picture itself when nothing says."""
    return row.get("identity") or row.get(task.instance, "") or row["image"]


def _collect(
    task: TaskSpec, rows: list[Mapping[str, str]], found: dict[str, _Picture], seen: set[str]
) -> None:
    trained = {row["domain"] for row in rows if _is_training(row)}
    has_gallery = any(row["domain"] in task.gallery for row in rows)
    for row in rows:
        if task.search == "pairs":
            is_query, in_gallery = row["split"] == "test", True
        elif has_gallery:
            in_gallery = row["domain"] in task.gallery
            is_query = row["split"] == "test" and not in_gallery
        else:
            is_query, in_gallery = row["split"] == "test", row["split"] in ("test", "gallery")
        if not is_query and not in_gallery:
            continue
        answer = row.get("identity") or row.get(task.instance, "")
        picture = found.setdefault(row["image"], _Picture(row))
        picture.trained |= row["domain"] in trained
        picture.seen |= _is_training(row) or _answer(row, task) in seen
        picture.cluster = picture.cluster or row.get("cluster") or answer or row["image"]
        picture.labels[task.name] = answer
        if task.category:
            picture.labels[task.category_key] = row.get(task.category, "")
        if is_query:
            picture.query.add(task.name)
        if in_gallery:
            picture.gallery.add(task.name)


def _read(folder: Path, image: str) -> bytes:
    try:
        return (folder / image).read_bytes()
    except OSError as error:
        raise DataError(
            f"{folder / image} cannot be read ({error.strerror}); `make data` prepares it again"
        ) from error
