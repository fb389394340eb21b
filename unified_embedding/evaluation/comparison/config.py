"""What is compared, as data: configs/compare.yaml. Budgets and margins stand there before a run."""

from pathlib import Path
from typing import Annotated, Final, Literal

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unified_embedding.datasets.complaints import problems_of
from unified_embedding.errors import DataError
from unified_embedding.evaluation.config import Product
from unified_embedding.evaluation.rotations import ROTATIONS

Role = Literal[
    "specialist-short",
    "specialist-long",
    "unified-steps",
    "unified-data",
    "no-layer-norm",
    "gradnorm",
    "step",
    "compatible",
]
OLD: Final[Role] = "unified-steps"
"""Whose run of the same seed is the old embedder of the row "compatible"."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CompareRow(_Section):
    """One kind of training, run once per seed.

    Attributes:
        name: how the page calls it.
        role: its part in the claims; any number of rows may be a "step": one change of the row
            "unified-data", at whose learning rate it runs, judged on validation for the release.
        task: a specialist's product.
        steps: in which the trunk moves.
        minutes: budget of one run in minutes of all cores together, stated before it.
        overrides: key=value of the training configuration.
        last: run after everything else; the first to be cut.
        seeds: of this row's runs, where they are not the comparison's.
    """

    name: str
    role: Role
    task: Product | None = None
    steps: Annotated[int, Field(ge=1)]
    minutes: Annotated[float, Field(gt=0)]
    overrides: list[str] = []
    last: bool = False
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _task_of_specialist(self) -> "CompareRow":
        if self.role.startswith("specialist") != (self.task is not None):
            raise ValueError(f"row {self.name!r}: a specialist, and only that, names its task")
        return self


class Sweep(_Section):
    """Each row's own choice of the trunk's rate, on the validation split.

    Attributes:
        rates: tried; the best mean of the row's main figures wins, of equal ones the lower.
        steps: of each short, annealed run.
        seed: of these runs; none of the comparison's.
    """

    rates: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    steps: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)] = 100


class Margins(_Section):
    """How much a figure may lose and still count as kept, in points.

    Attributes:
        own_task: C1, non-inferiority of unified on a specialist's own product.
        code: C3, mean of code minus float.
        balance: C5, non-inferiority of equal weights against GradNorm.
    """

    own_task: Annotated[float, Field(gt=0)]
    code: Annotated[float, Field(gt=0)]
    balance: Annotated[float, Field(gt=0)]


class Maps(_Section):
    """Random fixed maps under which codes are measured, see `evaluation.rotations`."""

    bits: list[Annotated[int, Field(ge=8, multiple_of=8)]] = [1280, 2048]
    count: Annotated[int, Field(ge=ROTATIONS)] = ROTATIONS


class CompareConfig(_Section):
    """One comparison.

    Attributes:
        training: the training configuration that all rows share; relative to this file.
        common: key=value that all rows share.
        out: folder of runs, caches and records.
        frozen: digest of the test set; "" takes any.
        seeds: of the runs of every row that names none of its own.
        margins: fixed beforehand.
        sweep: of the rates.
        maps: for codes.
        rows: in the order of the page.
    """

    training: Path
    common: list[str] = []
    out: Path
    frozen: str = ""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    margins: Margins
    sweep: Sweep
    maps: Maps = Maps()
    rows: list[CompareRow] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "CompareConfig":
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"row names must differ, got {names}")
        for seeds in (self.seeds, *map(self.seeds_of, self.rows)):
            if len(set(seeds)) != len(seeds):
                raise ValueError(f"seeds must differ, got {seeds}")
        parts = [(row.role, row.task) for row in self.rows if row.role != "step"]
        if len(set(parts)) != len(parts):
            raise ValueError("a role (and task) belongs to one row")
        steps = [row.name for row in self.rows if row.role == "step"]
        if steps and self.find("unified-data") is None:
            raise ValueError(f"{steps} are steps from a row of the role unified-data; add one")
        old, new = self.find(OLD), self.find("compatible")
        if new is not None and (old is None or old.last > new.last):
            raise ValueError(f"row {new.name!r} needs a row {OLD!r} that is run before it")
        if new is not None and old is not None:
            theirs, ours = self.seeds_of(old), self.seeds_of(new)
            if set(ours) - set(theirs):
                raise ValueError(f"row {new.name!r}: its seeds {ours} are not all of {theirs}")
            if ours != theirs and not (new.last and not old.last):
                raise ValueError(f"row {new.name!r}: with seeds of its own it must be `last: true`")
        if any(self.sweep.seed in self.seeds_of(row) for row in self.rows):
            raise ValueError(f"sweep.seed {self.sweep.seed} is a seed of the comparison")
        return self

    def seeds_of(self, row: CompareRow) -> list[int]:
        """The seeds of a row's runs."""
        return self.seeds if row.seeds is None else row.seeds

    def find(self, role: Role, task: str | None = None) -> CompareRow | None:
        """The row of a role, or None."""
        return next((r for r in self.rows if (r.role, r.task) == (role, task)), None)


def load_config(path: Path) -> CompareConfig:
    """Read a YAML file.

    Raises:
        DataError: missing, malformed, or a value does not fit; the message names it.
    """
    try:
        raw = yaml.safe_load(path.read_text())
        config = CompareConfig.model_validate(raw)
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML ({error})") from error
    except ValidationError as error:
        raise DataError(f"{path}: {problems_of(error)}") from None
    return config.model_copy(update={"training": path.parent / config.training})
