"""The parts of a run, built from its configuration."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unified_embedding.errors import TrainingError
from unified_embedding.training.bank import RowOptimizer, RowwiseAdagrad, Sgd
from unified_embedding.training.checkpoint import EmbedderRecipe
from unified_embedding.training.config import (
    SOFTMAX,
    Config,
    HeadConfig,
    LossName,
    ModelConfig,
    ScheduleConfig,
)
from unified_embedding.training.distributed import Rank
from unified_embedding.training.examples import Examples
from unified_embedding.training.gradnorm import GradNorm
from unified_embedding.training.heads import FullHead, ProxyHead
from unified_embedding.training.losses import (
    ArcFace,
    CosFace,
    NormalizedSoftmax,
    ProxyAnchor,
    ProxyLoss,
)
from unified_embedding.training.model import FixedMap, UnifiedEmbedder
from unified_embedding.training.plan import Plan
from unified_embedding.training.sampled_head import SampledHead
from unified_embedding.training.validation import embed
from unified_embedding.training.weights import load_trunk, trunk_weights

_MAP_PICTURES: Final = 512
_LOSSES: Final[Mapping[LossName, Callable[..., ProxyLoss]]] = {
    SOFTMAX: NormalizedSoftmax,
    "cosface": CosFace,
    "arcface": ArcFace,
    "proxy-anchor": ProxyAnchor,
}


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def head_classes(config: Config, examples: Examples) -> dict[str, list[str]]:
    """Label column -> its classes, for every configured column that the rows fill.

    Raises:
        TrainingError: a task has no rows or no labels, or a sampled column has none.
    """
    classes = {c: found for c in config.data.labels if (found := examples.classes(c))}
    for task in config.data.tasks:
        rows = examples.rows_of(task)
        if not len(rows):
            raise TrainingError(f"the manifest has no training rows of the task {task}")
        if not any((examples.labels[c][rows] != "").any() for c in classes):
            raise TrainingError(f"no training row of the task {task} carries any label")
    unused = sorted(set(config.sampled) - set(classes))
    if unused and set(config.data.tasks) == set(examples.tasks):
        raise TrainingError(f"sampled names {unused}, of which no row has a label")
    return classes


def build_plan(
    config: Config, examples: Examples, numbers: Mapping[str, NDArray[np.int64]]
) -> Plan:
    """Who stands in which batch; `numbers` are the class numbers of every column.

    Raises:
        TrainingError: the batch does not divide, or balanced batches lack classes.
    """
    rows = {task: examples.rows_of(task) for task in config.data.tasks}
    if config.images_per_class is None:
        return Plan(rows, config.batch, config.seed)
    balanced = {}
    for task, members in rows.items():
        column = examples.tasks[task].identity
        if column not in numbers:
            raise TrainingError(f"class-balanced batches of {task} need {column}")
        balanced[task] = numbers[column][members]
    return Plan(rows, config.batch, config.seed, balanced, config.images_per_class)


def build_model(
    config: Config, examples: Examples, device: torch.device
) -> tuple[EmbedderRecipe, UnifiedEmbedder]:
    """The network on `device`, with its starting weights and its fixed map, if it has one.

    Raises:
        SpecError: the trunk or its weights do not fit.
        TrainingError: `model.frozen` names no parameter, or all of them.
    """
    model_config, preprocessing = config.model, config.preprocessing.build()
    found = trunk_weights(model_config.trunk, model_config.weights, model_config.license)
    recipe = EmbedderRecipe(
        trunk=model_config.trunk,
        mean=found.mean,
        std=found.std,
        layer_norm=model_config.layer_norm,
        fixed_map=model_config.fixed_map,
        preprocessing=preprocessing,
        weights=found.source,
        license=found.license,
    )
    torch.manual_seed(config.seed)
    model = recipe.build(model_config.frozen_batch_norm)
    if found.state is not None:
        load_trunk(model.trunk, found.state, found.source)
    # NHWC in memory, as the pixels come and as tensor cores want it.
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _freeze(model, model_config)
    if isinstance(model.fixed_map, FixedMap):
        count = min(_MAP_PICTURES, len(examples))
        rows = np.arange(count) * len(examples) // count
        features = embed(_Pooled(model).eval(), examples, rows, preprocessing, device)
        model.fixed_map.set(features.mean(axis=0), model_config.rotation_seed)
    return recipe, model


def build_optimizer(schedule: ScheduleConfig, model: UnifiedEmbedder) -> torch.optim.Optimizer:
    """The optimiser of what the trunk trains, in two groups where norms are not to decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": trained, "weight_decay": schedule.weight_decay}]
    if not schedule.decay_norms:
        # Gains and biases are vectors; what multiplies features has two axes or more.
        groups[0]["params"] = [p for p in trained if p.ndim > 1]
        groups.append({"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0})
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.rate)
    return torch.optim.SGD(groups, lr=schedule.rate, momentum=schedule.momentum)


def build_heads(
    config: Config, classes: Mapping[str, list[str]], dim: int, rank: Rank
) -> list[ProxyHead]:
    """One head per label column, sampled where the configuration says so."""
    optimizer = _row_optimizer(config.schedule)
    heads: list[ProxyHead] = []
    for number, (column, found) in enumerate(classes.items()):
        seed, count = mixed_seed(config.seed, number), len(found)
        criterion = _criterion(config.heads.get(column, HeadConfig()), config.temperature)
        if column not in config.sampled:
            heads.append(FullHead(column, count, dim, seed, criterion, optimizer, rank))
            continue
        sampled = config.sampled[column]
        file = Path(config.run) / f"{column}.bank" if config.bank == "mapped" else None
        heads.append(
            SampledHead(column, count, dim, sampled, seed, criterion, optimizer, rank, file)
        )
    return heads


def build_gradnorm(
    config: Config, model: UnifiedEmbedder, heads: list[ProxyHead]
) -> GradNorm | None:
    """GradNorm over the heads, where the configuration asks for it.

    Raises:
        TrainingError: no trained parameter of the trunk has the layer's name.
    """
    if config.gradnorm is None:
        return None
    named = model.trunk.named_parameters()
    layer = [p for n, p in named if n.startswith(config.gradnorm.layer) and p.requires_grad]
    if not layer:
        raise TrainingError(
            f"gradnorm.layer: no trained parameter of {config.model.trunk} starts with "
            f"{config.gradnorm.layer!r}; name its last layer"
        )
    expected = [math.log(max(2, head.softmax_classes)) for head in heads]
    return GradNorm(layer, expected, config.gradnorm.alpha, config.gradnorm.rate)


def _criterion(head: HeadConfig, temperature: float) -> ProxyLoss:
    margin = {} if head.margin is None else {"margin": head.margin}
    return _LOSSES[head.loss or SOFTMAX](head.temperature or temperature, **margin)


def _row_optimizer(schedule: ScheduleConfig) -> RowOptimizer:
    if schedule.proxies == "adagrad":
        return RowwiseAdagrad(schedule.weight_decay)
    momentum = schedule.momentum if schedule.proxy_momentum is None else schedule.proxy_momentum
    return Sgd(momentum, schedule.weight_decay)


def _freeze(model: UnifiedEmbedder, config: ModelConfig) -> None:
    for prefix in config.frozen:
        named = [p for n, p in model.trunk.named_parameters() if n.startswith(prefix)]
        if not named:
            raise TrainingError(
                f"model.frozen: no parameter of {config.trunk} starts with {prefix!r}"
            )
        for parameter in named:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "model.frozen leaves nothing to train; schedule.full.steps=0 trains proxies alone"
        )


class _Pooled(nn.Module):
    """The features in front of LayerNorm, as a model of their own."""

    def __init__(self, model: UnifiedEmbedder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.pooled(pixels)
