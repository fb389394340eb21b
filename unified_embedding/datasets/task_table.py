"""The tasks as data: their labels, what is searched for, and how heads train; see tasks.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unified_embedding.datasets.complaints import problems_of
from unified_embedding.errors import DataError
from unified_embedding.retrieval import parse_metric

TASKS_FILE: Final = "tasks.yaml"
"""Beside a manifest: its own tasks, added to those that are shipped."""

_NAME: Final = r"[a-z][a-z0-9_]*$"
_RESERVED: Final = ("image", "task", "split", "domain", "identity", "cluster")

Name = Annotated[str, Field(pattern=_NAME)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelSpec(_Section):
    """One label column and its head.

    Attributes:
        weight: of the head's mean loss in the sum of all heads.
        temperature: of its softmax; by default the run's.
        loss: by default the normalised softmax; the names are those of a run's `heads`.
        margin: of the other losses; by default that of their papers.
        sampled: classes K of its softmax; by default all.
        made_up: classes of a smoke run without a manifest.
    """

    weight: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] | None = None
    loss: str | None = None
    margin: Annotated[float, Field(ge=0)] | None = None
    sampled: Annotated[int, Field(ge=1)] | None = None
    made_up: Annotated[int, Field(ge=0)] = 0


class TaskSpec(_Section):
    """One task; the attributes are those of tasks.yaml."""

    name: Name
    labels: dict[Name, LabelSpec]
    instance: str = ""
    category: str = ""
    category_label: str = ""
    search: Literal["gallery", "pairs"] = "gallery"
    gallery: list[str] = ["catalogue", "gallery"]
    metrics: Annotated[list[str], Field(min_length=1)] = ["R@1", "R@5", "R@10", "MRR"]
    category_metrics: Annotated[list[str], Field(min_length=1)] = ["P@20"]

    @model_validator(mode="after")
    def _consistent(self) -> "TaskSpec":
        if not self.labels:
            raise ValueError("labels: at least one label column is needed")
        for role, column in (("instance", self.instance), ("category", self.category)):
            if column and column not in self.labels:
                raise ValueError(f"{role} {column!r} is not one of its labels {list(self.labels)}")
        if not self.identity:
            raise ValueError("name the label column that is searched for: instance or category")
        if self.search == "pairs" and (self.category or not self.instance):
            raise ValueError("search: pairs goes by an instance alone")
        taken = [column for column in self.labels if column in _RESERVED]
        if taken:
            raise ValueError(f"labels: {taken[0]!r} is a column of every manifest")
        for metric in (*self.metrics, *self.category_metrics):
            parse_metric(metric)
        return self

    @property
    def identity(self) -> str:
        """The label that validation retrieves."""
        return self.category or self.instance

    @property
    def category_key(self) -> str:
        """The key of `HeldOut.labels` under which the category stands."""
        return self.category_label or f"{self.name} category"

    @property
    def main(self) -> tuple[str, str]:
        """Search and metric by which embedders are compared."""
        if self.category:
            return self.unseen, self.category_metrics[0]
        return self.pairs if self.search == "pairs" else self.exact, self.metrics[0]

    @property
    def unseen(self) -> str:
        """The search for a category among things that training never saw."""
        return f"{self.name} category, unseen"

    @property
    def categories(self) -> str:
        """The search for a category in the whole gallery."""
        return f"{self.name} category"

    @property
    def exact(self) -> str:
        """The search for the very thing in the gallery."""
        return f"{self.name} exact"

    @property
    def pairs(self) -> str:
        """The search of every domain in every other."""
        return f"{self.name} pairs"

    @property
    def merged(self) -> str:
        """The search of trained domains in one gallery."""
        return f"{self.name} merged"

    @property
    def unseen_pairs(self) -> str:
        """The pairs with a domain that training never saw."""
        return f"{self.name} unseen"


TaskTable = Mapping[str, TaskSpec]
"""Name -> task, in order."""


def label_columns(tasks: TaskTable) -> tuple[str, ...]:
    """Every label column, in the order of the heads."""
    return tuple(column for task in tasks.values() for column in task.labels)


def label_specs(tasks: TaskTable) -> dict[str, LabelSpec]:
    """Label column -> its head's settings."""
    return {column: spec for task in tasks.values() for column, spec in task.labels.items()}


def tasks_beside(manifest: Path) -> TaskTable:
    """The shipped tasks and those of the file tasks.yaml beside a manifest, if there is one.

    Raises:
        DataError: the file is malformed; the message names the entry and what is wrong with it.
    """
    path = manifest.with_name(TASKS_FILE)
    if not path.exists():
        return TASKS
    found = {**TASKS, **_read(path)}
    columns = label_columns(found)
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{path}: {twice[0]!r} is a label column of two tasks; each has its own")
    return found


def _read(path: Path) -> dict[str, TaskSpec]:
    try:
        raw: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML ({error})") from error
    if not isinstance(raw, dict) or not all(isinstance(entry, dict) for entry in raw.values()):
        raise DataError(f"{path} does not hold tasks: an entry is NAME: {{labels: ..., ...}}")
    found = {}
    for name, entry in raw.items():
        try:
            found[str(name)] = TaskSpec.model_validate({**entry, "name": name})
        except ValidationError as error:
            raise DataError(f"{path}, {name}: {problems_of(error)}") from None
    return found


TASKS: Final[TaskTable] = _read(Path(__file__).with_name(TASKS_FILE))
"""The tasks that are shipped: those of the paper's three products."""

BROWSE, CAMERA, SHOP = TASKS.values()
SHOP_KIND: Final = next(column for column in SHOP.labels if column != SHOP.instance)
"""The column of the class of product, beside the very product."""
