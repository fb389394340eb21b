"""One linear map and the proxy heads, trained on features of a trunk that does not move.

It takes seconds where a whole network takes an hour, so questions with many cells (dimensions,
seeds, numbers of sampled classes) can be asked at all. What it cannot show is what the trunk
would have learnt under each setting.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unified_embedding.datasets.task_table import TASKS
from unified_embedding.spec import digest
from unified_embedding.training.examples import Examples
from unified_embedding.training.heads import FullHead, ProxyHead
from unified_embedding.training.model import LAYER_NORM_EPS, random_rotation
from unified_embedding.training.plan import Plan
from unified_embedding.training.sampled_head import SampledHead
from unified_embedding.whole_files import whole_file

SAMPLED: Final = tuple(task.instance for task in TASKS.values() if task.instance)
"""The heads that the paper subsamples."""

_MOMENTUM: Final = 0.9
_REVISION: Final = 1


@dataclass(frozen=True)
class Setting:
    """What one training of the last layers depends on, besides its features.

    Attributes:
        dim: width d of the embedding.
        share: percent of the classes that the softmax of `SAMPLED` compares; 100 is the full one.
        seed: of the map, the proxies, the order of pictures and the sampled classes.
        steps: of SGD, rates falling to zero along a cosine.
        batch: pictures per step.
        rate: of the map.
        proxy_rate: of the proxies.
    """

    dim: int
    share: int
    seed: int
    steps: int
    batch: int
    rate: float
    proxy_rate: float


def embed(features: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings float32 [N, d] of features [N, D] by a map [D, d] and LayerNorm."""
    return normalised(features @ weights)


def normalised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """LayerNorm without affine, of the embedder's own epsilon, row by row."""
    centred = features - features.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + LAYER_NORM_EPS)
    rows: NDArray[np.float32] = (centred / scale).astype(np.float32)
    return rows


def fit(
    features: NDArray[np.float32],
    examples: Examples,
    setting: Setting,
    step_done: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Train; returns the map float32 [D, d].

    The map starts as d columns of a random orthogonal matrix; features are divided by their
    root mean square, so that one rate fits any trunk.

    Args:
        features: float32 [N, D] of the training pictures, in the order of `examples`.
        examples: their tasks and labels.
        setting: everything else.
        step_done: called after each step, for a progress bar.
    """
    scale = float(np.sqrt((features.astype(np.float64) ** 2).mean()))
    inputs = torch.from_numpy(features / np.float32(scale))
    rows = {task: examples.rows_of(task) for task in examples.tasks if len(examples.rows_of(task))}
    plan = Plan(rows, setting.batch - setting.batch % len(rows), setting.seed)
    classes = {column: examples.classes(column) for column in examples.labels}
    labels = {column: examples.encoded(column, found) for column, found in classes.items() if found}
    heads = [
        _head(column, int(numbers.max()) + 1, setting, index)
        for index, (column, numbers) in enumerate(labels.items())
    ]
    start = random_rotation(inputs.shape[1], setting.seed)[:, : setting.dim]
    weights = torch.from_numpy(np.ascontiguousarray(start)).requires_grad_()
    optimizer = torch.optim.SGD([weights], lr=setting.rate, momentum=_MOMENTUM)
    try:
        for step in range(setting.steps):
            course = 0.5 * (1 + math.cos(math.pi * step / setting.steps))
            optimizer.param_groups[0]["lr"] = setting.rate * course
            batch = plan.batch_rows(step)
            _step(inputs[torch.from_numpy(batch)], weights, setting, heads, labels, batch, step)
            optimizer.step()
            optimizer.zero_grad()
            for head in heads:
                head.update(setting.proxy_rate * course)
            step_done()
    finally:
        for head in heads:
            head.close()
    return weights.detach().numpy() / np.float32(scale)


def remembered(
    cache: Path, key: object, setting: Setting, train: Callable[[], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The map from an earlier run with the same features and setting, or a new one.

    Args:
        cache: folder of maps.
        key: names the features and labels.
        setting: see `fit`.
        train: returns the map when it is not there.
    """
    path = cache / f"{digest([_REVISION, key, asdict(setting)])}.npy"
    if path.exists():
        weights: NDArray[np.float32] = np.load(path)
        return weights
    weights = train()
    cache.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside, beside.open("wb") as file:
        np.save(file, weights)
    return weights


def _step(
    inputs: Tensor,
    weights: Tensor,
    setting: Setting,
    heads: list[ProxyHead],
    labels: dict[str, NDArray[np.int64]],
    batch: NDArray[np.int64],
    step: int,
) -> None:
    for head in heads:
        head.begin(labels[head.column][batch], step)
    embedding = functional.layer_norm(inputs @ weights, (setting.dim,), eps=LAYER_NORM_EPS)
    losses: list[Any] = [head.loss(embedding, labels[head.column][batch]) for head in heads]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def too_few(examples: Examples, shares: Iterable[int], batch: int) -> str:
    """Why a sampled softmax cannot hold the classes of a batch; "" where it can."""
    present = [task for task in examples.tasks if len(examples.rows_of(task))]
    pictures = batch // max(1, len(present))
    for column in (column for column in examples.labels if column in SAMPLED):
        classes = len(examples.classes(column))
        for share in shares:
            if classes and _sampled(classes, share) < min(classes, pictures):
                return (
                    f"{share} % of the {classes} classes of {column} are fewer than the "
                    f"{pictures} pictures of its task in a batch"
                )
    return ""


def _sampled(classes: int, share: int) -> int:
    return math.ceil(classes * share / 100)


def _head(column: str, classes: int, setting: Setting, index: int) -> ProxyHead:
    seed = 1000 * setting.seed + index
    if column in SAMPLED and setting.share < 100:
        sampled = _sampled(classes, setting.share)
        return SampledHead(column, classes, setting.dim, sampled, seed)
    return FullHead(column, classes, setting.dim, seed)
