"""What is evaluated, as data: configs/evaluate.yaml."""

from pathlib import Path
from typing import Annotated, Literal

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unified_embedding.datasets.complaints import problems_of
from unified_embedding.datasets.task_table import TASKS
from unified_embedding.errors import DataError
from unified_embedding.evaluation.rotations import ROTATIONS
from unified_embedding.protocols.tasks import MAIN

Product = Annotated[str, Field(pattern=f"^({'|'.join(TASKS)})$")]
"""A task that is shipped."""

Kind = Literal["zero-shot", "specialist", "unified"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EmbedderRow(_Section):
    """One embedder of the table.

    Attributes:
        name: how the page calls it.
        source: see `embedders`.
        kind: "zero-shot", "specialist" (trained for one product) or "unified".
        task: the product that a specialist was trained for.
        baseline: name of the zero-shot row with the same input size.
        compared: whether this unified row is the one that stands against the specialists.
    """

    name: str
    source: str
    kind: Kind
    task: Product | None = None
    baseline: str | None = None
    compared: bool = False

    @model_validator(mode="after")
    def _task_of_specialist(self) -> "EmbedderRow":
        if (self.kind == "specialist") != (self.task is not None):
            raise ValueError(f"row {self.name!r}: a specialist, and only that, names its task")
        return self


class LastLayers(_Section):
    """Experiments that train only the last layers, on cached features of a fixed trunk.

    Attributes:
        source: the trunk (trunk:NAME@SIZE or a checkpoint).
        dims: widths below the full one.
        shares: percent of the classes in the sampled softmax.
        seeds: training seeds per share.
        steps: of SGD each.
        batch: pictures per step, equal shares of the tasks.
        rate: of the linear map.
        proxy_rate: of the proxies.
    """

    source: str
    dims: list[Annotated[int, Field(ge=8, multiple_of=8)]] = [64, 256]
    shares: list[Annotated[int, Field(ge=1, le=100)]] = [5, 10, 25, 100]
    seeds: Annotated[int, Field(ge=1)] = 3
    steps: Annotated[int, Field(ge=1)] = 1500
    batch: Annotated[int, Field(ge=3)] = 48
    rate: Annotated[float, Field(gt=0)] = 0.01
    proxy_rate: Annotated[float, Field(gt=0)] = 0.05


class Elsewhere(_Section):
    """A test set of a domain that no row was trained on.

    Attributes:
        name: how the page calls it.
        manifest: CSV or Parquet; relative paths start at the folder of the main manifest.
        task: the search of `tasks` that counts, for instance "camera category",
        metric: and its figure.
    """

    name: str
    manifest: Path
    task: str
    metric: str


class Rotations(_Section):
    """Codes under random fixed maps, because one draw decides nothing.

    Attributes:
        rows: names of rows whose embedder has a fixed map, whose rotation is drawn anew.
        bits: widths of the codes.
        count: maps, seeds 0 to count - 1; at least `rotations.ROTATIONS`.
    """

    rows: list[str]
    bits: list[Annotated[int, Field(ge=8, multiple_of=8)]] = [1280, 2048]
    count: Annotated[int, Field(ge=ROTATIONS)] = ROTATIONS


class Margins(_Section):
    """How much a figure may lose and still count as kept, in points; fixed before the runs.

    Attributes:
        code: code minus float, mean over rotations, at the widest code.
        asymmetric: float query against stored codes, minus float, likewise.
        sampled: C4: the subsampled softmax against the full one (non-inferiority).
    """

    code: Annotated[float, Field(gt=0)] = 1.5
    asymmetric: Annotated[float, Field(gt=0)] = 0.7
    sampled: Annotated[float, Field(gt=0)] = 3.0


class EvaluationConfig(_Section):
    """One evaluation.

    Attributes:
        manifest: CSV or Parquet; by default the one that `make data` wrote.
        frozen: digest of the test set behind the published figures; "" takes any.
        rows: the embedders, in the order of the table.
        elsewhere: further test sets, of domains that no row was trained on.
        last_layers: left out when None.
        rotations: left out when None.
        margins: what counts as no loss.
        training_seeds: how many seeds each trained row stands for; stated on the page.
    """

    manifest: Path | None = None
    frozen: str = ""
    rows: list[EmbedderRow]
    elsewhere: list[Elsewhere] = []
    last_layers: LastLayers | None = None
    rotations: Rotations | None = None
    margins: Margins = Margins()
    training_seeds: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluationConfig":
        names = [row.name for row in self.rows]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"rows need different names, got {names}")
        zero_shot = {row.name for row in self.rows if row.kind == "zero-shot"}
        for row in self.rows:
            if row.baseline is not None and row.baseline not in zero_shot:
                raise ValueError(
                    f"row {row.name!r}: baseline {row.baseline!r} is not a zero-shot row"
                )
        strange = set(self.rotations.rows) - set(names) if self.rotations is not None else set()
        if strange:
            raise ValueError(f"rotations: no row is called {sorted(strange)}")
        if sum(row.compared for row in self.rows) > 1:
            raise ValueError("at most one row is compared with the specialists")
        if any(row.compared and row.kind != "unified" for row in self.rows):
            raise ValueError("only a unified row can be compared with the specialists")
        tasks = [row.task for row in self.rows if row.task is not None]
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"one specialist per task at most, got {tasks}")
        return self

    def compared(self) -> EmbedderRow | None:
        """The unified row that stands against the specialists."""
        return next((row for row in self.rows if row.compared), None)

    def specialists(self) -> dict[str, EmbedderRow]:
        """Specialists by their product, in the order of `MAIN`."""
        found = {row.task: row for row in self.rows if row.task is not None}
        return {task: found[task] for task in MAIN if task in found}

    def replaced(self) -> list[EmbedderRow]:
        """The embedders that the compared row replaces, for costs.

        Where no specialist is a row, as many of the compared row itself: a specialist has the same
        trunk and width.
        """
        row = self.compared()
        like_itself = [] if row is None else [row] * len(MAIN)
        return list(self.specialists().values()) or like_itself


def load_config(path: Path) -> EvaluationConfig:
    """Read a YAML file.

    Raises:
        DataError: missing, malformed, or a value does not fit; the message names it.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; configs/evaluate.yaml is the one shipped"
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML ({error})") from error
    try:
        return EvaluationConfig.model_validate(raw)
    except ValidationError as error:
        raise DataError(f"{path}: {problems_of(error)}") from None
