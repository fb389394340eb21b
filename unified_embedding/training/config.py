"""A training run as data: YAML file, then `key=value` overrides, checked field by field."""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from unified_embedding.datasets.complaints import problems_of
from unified_embedding.datasets.store import data_home
from unified_embedding.datasets.task_table import (
    TASKS,
    TaskTable,
    label_columns,
    label_specs,
    tasks_beside,
)
from unified_embedding.errors import TrainingError
from unified_embedding.image import Preprocessing

PREPARED: Final = "prepared"
"""Stands for the manifest that `make data` writes."""

Share = Annotated[float, Field(gt=0, le=1)]

LossName = Literal["normalized-softmax", "cosface", "arcface", "proxy-anchor"]
SOFTMAX: Final[LossName] = "normalized-softmax"


def _later(default: Any = None) -> Any:
    """Of settings inside a section that older runs' sections lack: unset, both are equal."""
    return Field(exclude_if=lambda value: value == default)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2 floats: plain YAML 1.1 reads 1e-4, without a dot, as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _table(info: ValidationInfo) -> TaskTable:
    """The tasks that a configuration may name."""
    return (info.context or {}).get("tasks", TASKS)  # type: ignore[no-any-return]


class ModelConfig(_Section):
    """The network.

    Attributes:
        trunk: timm name.
        weights: "lite0", "random" or a state dict; by default lite0 for its own trunk.
        license: SPDX expression of the weights, for a file.
        layer_norm: False is an ablation; such a model cannot be exported.
        fixed_map: subtract the mean of the training features and rotate, before LayerNorm.
        rotation_seed: draws that rotation.
        frozen_batch_norm: keep BatchNorm's statistics; False updates them, and then several
            processes do not compute what one does.
        frozen: parameters whose names start so are not trained, for instance "blocks.0".
    """

    trunk: str = "tf_efficientnet_lite0"
    weights: str | None = None
    license: str | None = None
    layer_norm: bool = True
    fixed_map: bool = False
    rotation_seed: int = 0
    frozen_batch_norm: bool = True
    frozen: list[str] = []


class MadeUp(_Section):
    """Made-up pictures instead of a manifest: label column -> number of classes, and `per_class`.

    By default the numbers of the task table; 0 classes of a task's identity leave it out.

    Attributes:
        per_class: pictures of each class and split.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, Annotated[int, Field(ge=0)]]

    per_class: Annotated[int, Field(ge=1)] = 4

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = {column: spec.made_up for column, spec in label_specs(TASKS).items()}
        unknown = sorted(set(given) - set(known) - {"per_class"})
        if unknown:
            raise ValueError(f"{unknown[0]} is none of {[*known, 'per_class']}")
        return {**known, **given}

    def classes(self, column: str) -> int:
        """Number of classes of a label column."""
        return self.__pydantic_extra__[column]


class DataConfig(_Section):
    """Where pictures and labels come from.

    Attributes:
        manifest: CSV or Parquet; its image paths are relative to it. Wins over `made_up`.
            "prepared" is the one that `make data` writes.
        made_up: generated pictures, for smoke runs.
        tasks: tasks to train, by default all that are shipped or stand in the file tasks.yaml
            beside the manifest; one alone makes a specialist.
        labels: label columns that get a head; all of these tasks' columns by default.
        shared_labels: label column -> other tasks whose training rows carry that label too: the one
            that rows of the column's own task and of the same `identity` have.
        crop_area: smallest share of a picture that a random crop keeps; 1 turns crops off.
        flip: mirror half of the pictures.
        color: largest relative change of each colour channel.
        augment: "light" stops there; "strong" adds what hand-held cameras and rooms do:
            perspective, light and occlusion (`dataset.STRONG`).
        workers: processes that read pictures; 0 reads in the training process.
    """

    manifest: str | None = None
    made_up: MadeUp | None = None
    tasks: list[str] = list(TASKS)
    labels: list[str] = list(label_columns(TASKS))
    shared_labels: Annotated[dict[str, list[str]] | None, _later()] = None
    crop_area: Share = 0.6
    flip: bool = True
    color: Annotated[float, Field(ge=0, lt=1)] = 0.05
    augment: Annotated[Literal["light", "strong"], _later("light")] = "light"
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> "DataConfig":
        table = _table(info)
        if self.manifest is None and self.made_up is None:
            raise ValueError("give data.manifest=PATH, or data.made_up for generated pictures")
        chosen = (
            ("tasks", self.tasks, list(table)),
            ("labels", self.labels, list(label_columns(table))),
        )
        for name, values, known in chosen:
            if not values or len(set(values)) != len(values) or set(values) - set(known):
                raise ValueError(f"{name} {values} must be some of {known}, each once")
        for column, tasks in (self.shared_labels or {}).items():
            if column not in self.labels:
                raise ValueError(f"shared_labels: {column!r} is none of labels {self.labels}")
            others = [task for task in self.tasks if column not in table[task].labels]
            if not tasks or set(tasks) - set(others):
                raise ValueError(f"shared_labels.{column} {tasks} must be some of {others}")
        return self


class PreprocessingConfig(_Section):
    """See `unified_embedding.image.Preprocessing`."""

    size: Annotated[int, Field(ge=32)] = 224
    resize: Literal["letterbox", "center_crop"] = "letterbox"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_pct: Share = 0.875

    def build(self) -> Preprocessing:
        """The library's own description."""
        return Preprocessing(self.size, self.resize, self.interpolation, self.crop_pct)


class Length(_Section):
    """How long a stage lasts: `steps`, or else `epochs` of the largest data set."""

    epochs: Annotated[float, Field(ge=0)] = 1.0
    steps: Annotated[int, Field(ge=0)] | None = None


class ScheduleConfig(_Section):
    """Two stages (first the proxies alone, then everything) and the learning rate.

    Attributes:
        heads: the first stage; the trunk does not move.
        full: the second.
        rate: learning rate of the trunk.
        proxy_rate: learning rate of the proxies, in both stages.
        optimizer: of the trunk: "sgd" or "adamw".
        momentum: of SGD.
        weight_decay: of the optimiser, proxies included.
        decay_norms: False spares the trunk's norms and biases the weight decay.
        clip: largest norm of the trunk's gradient; 0 leaves it as it is.
        ema: decay of an exponential moving average of the trunk's weights, for instance 0.999; what
            validates and is saved is then the average. 0 keeps none.
        proxies: how proxies move: "sgd", or "adagrad" with one accumulator a row.
        proxy_momentum: of the proxies' SGD; by default `momentum`. A sampled row resumes its old
            momentum when it is drawn again, which 0 and "adagrad" avoid.
        decay: course of both rates over the second stage: "constant", "cosine" to zero, or
            "step", times 0.1 at each of `milestones`.
        milestones: shares of the second stage.
        warmup: share of the second stage over which the trunk's rate rises from zero.
    """

    heads: Length = Length()
    full: Length = Length(epochs=3.0)
    rate: Annotated[float, Field(ge=0)] = 0.001
    proxy_rate: Annotated[float, Field(ge=0)] = 0.005
    optimizer: Annotated[Literal["sgd", "adamw"], _later("sgd")] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay_norms: Annotated[bool, _later(True)] = True
    clip: Annotated[float, Field(ge=0), _later(0.0)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1), _later(0.0)] = 0.0
    proxies: Literal["sgd", "adagrad"] = "sgd"
    proxy_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    decay: Literal["constant", "cosine", "step"] = "cosine"
    milestones: list[Share] = [0.5]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0


class HeadConfig(_Section):
    """How one head takes part.

    Attributes:
        weight: of its mean loss in the sum of all heads.
        temperature: of its softmax; by default the run's.
        loss: by default the normalised softmax; see `losses`.
        margin: of the other losses; by default that of their papers.
    """

    weight: Annotated[float, Field(gt=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] | None = None
    loss: Annotated[LossName | None, _later()] = None
    margin: Annotated[Annotated[float, Field(ge=0)] | None, _later()] = None

    @model_validator(mode="after")
    def _has_margin(self) -> "HeadConfig":
        if self.margin is not None and self.loss in (None, SOFTMAX):
            raise ValueError(f"margin: {SOFTMAX} has none; name another loss beside it")
        if self.loss == "arcface" and (self.margin or 0) >= math.pi:
            raise ValueError(f"margin {self.margin} of arcface is an angle in radians, below pi")
        return self


class GradNormConfig(_Section):
    """Loss weights that move by GradNorm instead of standing still; see `gradnorm`.

    Attributes:
        alpha: asymmetry: how strongly tasks that learn slowly are favoured.
        rate: learning rate of the weights.
        layer: the last shared layer, a prefix of parameter names of the trunk.
    """

    alpha: Annotated[float, Field(ge=0)] = 1.5
    rate: Annotated[float, Field(gt=0)] = 0.025
    layer: str = "conv_head"


class CompatibleConfig(_Section):
    """Backward-compatible training; see `compatible`. A path alone stands for `old`.

    Attributes:
        old: the embedder whose index new queries shall search: a released folder with
            embedder.onnx and spec.json, or last.pt of a run.
        weight: of the influence loss beside each head's own.
    """

    old: str
    weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, given: Any) -> Any:
        return {"old": given} if isinstance(given, str) else given


class ValidationConfig(_Section):
    """Model selection, on the manifest's validation split alone.

    Attributes:
        every: steps between two validations; 0 never validates, and the last model is kept.
        images: at most so many pictures per task.
    """

    every: Annotated[int, Field(ge=0)] = 200
    images: Annotated[int, Field(ge=2)] = 1000


class Config(_Section):
    """One training run.

    Attributes:
        run: folder of checkpoints, logs and the best model.
        note: printed at the start, for instance which hardware the run needs.
        seed: fixes data order, augmentation, proxies and sampled classes.
        batch: images per step over all ranks, equal shares of every task.
        accumulate: the batch passes the trunk in so many parts, which needs less memory and one
            more forward pass; losses and gradients are those of the whole batch.
        images_per_class: class-balanced batches: so many images of each drawn class.
        temperature: of the normalised softmax.
        heads: label column -> weight, temperature and loss of that head.
        class_means: start every proxy from the mean embedding of at most so many training pictures
            of its class; by default proxies are drawn at random.
        gradnorm: let GradNorm move the weights; one process, no fp16.
        compatible_with: an old embedder that this one's queries shall understand.
        sampled: label column -> K; columns not named use the full softmax.
        bank: keep sampled heads' proxies in "memory" of each rank, or in a file that the ranks
            of a host map ("mapped").
        precision: of the trunk: "fp32", "bf16" or "fp16" (with loss scaling).
        threads: torch threads per process; 0 leaves the choice to torch.
        start_from: last.pt of another run whose weights and proxies this one begins with.
        checkpoint_steps: save at the latest after so many steps,
        checkpoint_minutes: or so many minutes.
        trace: write the pictures of every step to RUN/trace, one file per rank.
    """

    run: str
    note: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig
    model: ModelConfig = ModelConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    batch: Annotated[int, Field(ge=1)] = 48
    accumulate: Annotated[int, Field(ge=2)] | None = None
    images_per_class: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(gt=0)] = 0.05
    heads: dict[str, HeadConfig] = {}
    class_means: Annotated[int, Field(ge=1)] | None = None
    gradnorm: GradNormConfig | None = None
    compatible_with: CompatibleConfig | None = None
    sampled: dict[str, Annotated[int, Field(ge=1)]] = {}
    bank: Literal["memory", "mapped"] = "memory"
    schedule: ScheduleConfig = ScheduleConfig()
    validation: ValidationConfig = ValidationConfig()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: Annotated[int, Field(ge=0)] = 0
    start_from: str | None = None
    checkpoint_steps: Annotated[int, Field(ge=1)] = 500
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 4.0
    trace: bool = False

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> "Config":
        known = label_columns(_table(info))
        for name, columns in (("sampled", self.sampled), ("heads", self.heads)):
            unknown = set(columns) - set(known)
            if unknown:
                raise ValueError(f"{name} names {sorted(unknown)}; label columns are {list(known)}")
        if self.gradnorm is not None and any(head.weight != 1 for head in self.heads.values()):
            raise ValueError("gradnorm moves the weights of heads, which therefore cannot be given")
        if self.gradnorm is not None and {h.loss for h in self.heads.values()} - {None, SOFTMAX}:
            raise ValueError(f"gradnorm knows where {SOFTMAX} starts, and no other loss of heads")
        if self.gradnorm is not None and self.precision == "fp16":
            raise ValueError("gradnorm needs precision fp32 or bf16: fp16 scales gradients")
        if self.accumulate is not None and not self.model.frozen_batch_norm:
            raise ValueError("accumulate: BatchNorm would see parts; keep model.frozen_batch_norm")
        if self.compatible_with is not None and self.gradnorm is not None:
            raise ValueError("compatible_with and gradnorm do not go together; leave one out")
        if self.compatible_with is not None and not self.model.layer_norm:
            raise ValueError("compatible_with needs model.layer_norm, as whatever is served")
        if self.batch % len(self.data.tasks):
            raise ValueError(
                f"batch {self.batch} does not divide among {len(self.data.tasks)} tasks; "
                f"use a multiple of {len(self.data.tasks)}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be resumed; names, speed and saving may differ."""
        free = {"run", "note", "threads", "checkpoint_steps", "checkpoint_minutes", "trace", "bank"}
        fields = self.model_dump(mode="json", exclude=free)
        del fields["data"]["workers"]
        return fields


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and apply overrides such as "schedule.full.steps=100".

    Raises:
        TrainingError: the file is missing or malformed, a key is unknown, or a value does not
            fit; the message names the key.
    """
    try:
        raw = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        raise TrainingError(f"config {path} does not exist; configs/ holds those shipped") from None
    except yaml.YAMLError as error:
        raise TrainingError(f"{path} is not YAML ({error})") from error
    if not isinstance(raw, dict):
        raise TrainingError(f"{path} does not hold keys and values")
    for override in overrides or []:
        _apply(raw, override)
    table = _from_table(raw)
    try:
        return Config.model_validate(raw, context={"tasks": table})
    except ValidationError as error:
        raise TrainingError(f"{path}: {problems_of(error)}") from None


def manifest_path(manifest: str | None) -> Path | None:
    """The file that `data.manifest` names; None for made-up pictures."""
    if manifest is None:
        return None
    return data_home() / "manifest.csv" if manifest == PREPARED else Path(manifest)


def _from_table(raw: dict[str, Any]) -> TaskTable:
    """The tasks of the manifest that is named; fills in what they say and `raw` does not."""
    data = raw.get("data")
    manifest = data.get("manifest") if isinstance(data, dict) else None
    path = manifest_path(manifest) if isinstance(manifest, str) else None
    table = TASKS if path is None else tasks_beside(path)
    if isinstance(data, dict) and table is not TASKS:
        data.setdefault("tasks", list(table))
        data.setdefault("labels", list(label_columns(table)))
    specs = label_specs(table)
    sampled = {column: spec.sampled for column, spec in specs.items() if spec.sampled}
    if sampled:
        raw.setdefault("sampled", sampled)
    for column, spec in specs.items():
        chosen = spec.model_dump(include=set(HeadConfig.model_fields), exclude_defaults=True)
        heads = raw.setdefault("heads", {}) if chosen else None
        if isinstance(heads, dict):
            heads[column] = {**chosen, **(heads.get(column) or {})}
    return table


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise TrainingError(f"override {override!r} is not key=value")
    *sections, last = key.split(".")
    place = raw
    for section in sections:
        inner = place.setdefault(section, {})
        if inner is None:
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise TrainingError(f"override {override!r}: {section} is a value, not a section")
        place = inner
    try:
        place[last] = yaml.load(text, _Loader) if text else None
    except yaml.YAMLError as error:
        raise TrainingError(f"override {override!r} has no readable value ({error})") from error
