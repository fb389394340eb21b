"""What dimension and the number of sampled classes do, on features of a trunk that stands still."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from unified_embedding.evaluation.config import LastLayers
from unified_embedding.evaluation.last_layer import (
    Setting,
    embed,
    fit,
    normalised,
    remembered,
)
from unified_embedding.evaluation.rotations import ROTATIONS, rotated_vectors
from unified_embedding.protocols.held_out import HeldOut
from unified_embedding.protocols.measure import Cell, Measurement, Samples, measure
from unified_embedding.protocols.tasks import CAMERA_EXACT, MAIN, Task
from unified_embedding.spec import digest
from unified_embedding.training.examples import Examples

PLAIN: Final = "LayerNorm"
NO_NORM: Final = "no LayerNorm"
MAPPED: Final = "mean subtracted, rotated, LayerNorm"

MEASURED: Final = frozenset({*(name for name, _ in MAIN.values()), CAMERA_EXACT})
"""Names of the tasks that experiments are measured on."""


@dataclass(frozen=True, eq=False)
class TrunkFeatures:
    """Pooled features, in front of LayerNorm.

    Attributes:
        id: names trunk and training pictures.
        training: float32 [N, D], in the order of `examples`.
        examples: tasks and labels of the training pictures.
        held_out: float32 [M, D], in the order of the test pictures.
    """

    id: str
    training: NDArray[np.float32]
    examples: Examples
    held_out: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """D."""
        return self.training.shape[1]


@dataclass(frozen=True, eq=False)
class Findings:
    """What the experiments measured.

    Attributes:
        dim: full dimension D.
        raw: the trunk with no trained layer, by treatment (`PLAIN`, `NO_NORM`, `MAPPED`): one
            measurement, or one per rotation.
        learnt: dimension -> a trained map, with LayerNorm behind it.
        sampled: percent of classes -> one measurement per seed.
        classes: label column -> number of classes.
        pictures: training pictures.
        settings: as configured.
    """

    dim: int
    raw: Mapping[str, Sequence[Measurement]]
    learnt: Mapping[int, Measurement]
    sampled: Mapping[int, Sequence[Measurement]]
    classes: Mapping[str, int]
    pictures: int
    settings: LastLayers


def run(
    features: TrunkFeatures,
    pictures: HeldOut,
    tasks: Sequence[Task],
    settings: LastLayers,
    cache: Path,
    console: Console,
) -> Findings:
    """Train what is not in `cache` yet, and measure everything.

    Args:
        features: of the trunk.
        pictures: the test set.
        tasks: of `build_tasks`; those of `MEASURED` are used.
        settings: which cells.
        cache: folder of trained maps.
        console: where progress is shown.
    """
    chosen = [task for task in tasks if task.name in MEASURED]
    found: dict[Setting, Measurement] = {}
    wanted = dict.fromkeys(
        [*_dimension_settings(features.dim, settings), *_share_settings(features.dim, settings)]
    )
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("training last layers", total=len(wanted) * settings.steps)
        for number, setting in enumerate(wanted):
            weights = remembered(
                cache,
                features.id,
                setting,
                lambda setting=setting: fit(  # type: ignore[misc]
                    features.training, features.examples, setting, lambda: progress.advance(bar)
                ),
            )
            progress.update(bar, completed=(number + 1) * settings.steps)
            vectors = embed(features.held_out, weights)
            found[setting] = measure(pictures, vectors, chosen)
    return Findings(
        dim=features.dim,
        raw={
            name: [measure(pictures, one, chosen) for one in vectors]
            for name, vectors in _untrained(features).items()
        },
        learnt={s.dim: found[s] for s in _dimension_settings(features.dim, settings)},
        sampled={
            share: [found[s] for s in _share_settings(features.dim, settings) if s.share == share]
            for share in settings.shares
        },
        classes={c: len(features.examples.classes(c)) for c in features.examples.labels},
        pictures=len(features.examples),
        settings=settings,
    )


def over_seeds(measurements: Sequence[Measurement], cell: Cell) -> Samples:
    """Each query's mean over training seeds."""
    samples = [measurement.samples[cell] for measurement in measurements]
    values = np.mean([one.values for one in samples], axis=0)
    return Samples(values, samples[0].clusters)


def features_id(embedder: str, sha256: Sequence[str], examples: Examples) -> str:
    """Names features of `embedder` over training pictures with their labels."""
    return digest([embedder, list(sha256), examples.fingerprint()])


def _untrained(features: TrunkFeatures) -> dict[str, list[NDArray[np.float32]]]:
    mean = features.training.mean(axis=0)
    return {
        PLAIN: [normalised(features.held_out)],
        NO_NORM: [features.held_out],
        MAPPED: [
            rotated_vectors(features.held_out, features.dim, seed, mean)
            for seed in range(ROTATIONS)
        ],
    }


def _dimension_settings(full: int, settings: LastLayers) -> list[Setting]:
    dims = [*(dim for dim in settings.dims if dim < full), full]
    return [_setting(dim, 100, 0, settings) for dim in dims]


def _share_settings(full: int, settings: LastLayers) -> list[Setting]:
    return [
        _setting(full, share, seed, settings)
        for share in settings.shares
        for seed in range(settings.seeds)
    ]


def _setting(dim: int, share: int, seed: int, settings: LastLayers) -> Setting:
    return Setting(
        dim,
        share,
        seed,
        settings.steps,
        settings.batch,
        settings.rate,
        settings.proxy_rate,
    )
