"""What the sign-bit code costs, over random fixed maps: one draw of a rotation decides nothing.

The map rotates an embedding, or spreads it over more bits than it has dimensions, and LayerNorm
follows. Float figures hardly change; which bits flip does, from draw to draw by a point and more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.evaluation.last_layer import normalised
from unified_embedding.protocols.held_out import HeldOut
from unified_embedding.protocols.measure import Cell, Measurement, Samples, measure
from unified_embedding.protocols.tasks import MAIN, Task
from unified_embedding.retrieval import Comparison, Interval
from unified_embedding.spec import digest
from unified_embedding.whole_files import whole_file

ROTATIONS: Final = 8
"""Draws that a statement about codes needs at least."""

STORED: Final[tuple[Comparison, ...]] = ("asymmetric", "code")
"""Comparisons with stored codes."""

_REVISION: Final = 1


@dataclass(frozen=True, eq=False)
class Rotated:
    """One embedder's codes under several maps, seeds 0 to R - 1; none of them is chosen.

    Attributes:
        bits: of a code.
        losses: cell of `STORED` -> per map, figure minus that of the float cosine of the same
            vectors, query by query.
    """

    bits: int
    losses: Mapping[Cell, Sequence[Samples]]

    def mean(self, cell: Cell) -> Interval | None:
        """Mean over the maps, its interval over clusters; None when there is no such figure."""
        if cell not in self.losses:
            return None
        each = self.losses[cell]
        values = np.mean([one.values for one in each], axis=0)
        return Samples(values, each[0].clusters).interval()

    def spread(self, cell: Cell) -> float:
        """Standard deviation over the maps (R - 1 in the denominator)."""
        return float(np.std([one.values.mean() for one in self.losses[cell]], ddof=1))


def random_map(dim: int, bits: int, seed: int) -> NDArray[np.float32]:
    """A random map float32 [dim, bits] with orthonormal rows (columns when bits < dim).

    Uniform, by QR with the signs of R's diagonal taken out, as `model.random_rotation`.
    """
    gaussian = np.random.default_rng(seed).standard_normal((max(dim, bits), min(dim, bits)))
    q, r = np.linalg.qr(gaussian)
    tall: NDArray[np.float32] = (q * np.sign(np.diag(r))).astype(np.float32)
    return tall.T if bits >= dim else tall


def rotated_vectors(
    vectors: NDArray[np.float32], bits: int, seed: int, mean: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Embeddings float32 [N, bits]: subtract `mean` [D], map by draw `seed`, LayerNorm."""
    centred = vectors if mean is None else vectors - mean
    return normalised(centred @ random_map(vectors.shape[1], bits, seed))


def rotate(
    pictures: HeldOut,
    vectors: NDArray[np.float32],
    tasks: Sequence[Task],
    bits: int,
    mean: NDArray[np.float32] | None = None,
    rotations: int = ROTATIONS,
) -> Rotated:
    """Measure the main figures under `rotations` maps.

    Args:
        pictures: the test set.
        vectors: float32 [N, D], row by row.
        tasks: of `build_tasks`; the main ones are used.
        bits: of the codes.
        mean: of training pictures, subtracted first; None for an embedder that has a fixed map
            in its graph, of which only the rotation is then drawn anew.
        rotations: maps.
    """
    main = {name for name, _ in MAIN.values()}
    chosen = [task for task in tasks if task.name in main]
    found = [
        measure(pictures, rotated_vectors(vectors, bits, seed, mean), chosen)
        for seed in range(rotations)
    ]
    return Rotated(bits, losses(found))


def losses(measurements: Sequence[Measurement]) -> dict[Cell, list[Samples]]:
    """Cell of `STORED` -> per measurement, figure minus float, query by query."""
    return {
        cell: [
            one.samples[cell].minus(one.samples[Cell(cell.task, cell.metric, "float")])
            for one in measurements
        ]
        for cell in measurements[0].samples
        if cell.comparison in STORED
    }


def remembered_rotation(cache: Path, key: object, make: Callable[[], Rotated]) -> Rotated:
    """What `make` found earlier for the same key, or now.

    Args:
        cache: folder.
        key: JSON values that name test set, vectors, width and number of maps.
        make: measures.
    """
    path = cache / f"{digest([_REVISION, key])}.npz"
    if path.exists():
        with np.load(path) as saved:
            return _unpacked(saved)
    made = make()
    cache.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside, beside.open("wb") as file:
        np.savez(file, **_packed(made))
    return made


def _packed(found: Rotated) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"bits": np.array(found.bits)}
    for cell, each in found.losses.items():
        arrays["|".join(cell)] = np.stack([one.values for one in each])
        arrays[f"clusters|{cell.task}"] = each[0].clusters
    return arrays


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> Rotated:
    found = {}
    for name in arrays:
        task, *rest = name.split("|")
        if len(rest) == 2:
            clusters = arrays[f"clusters|{task}"]
            kind = next(kind for kind in STORED if kind == rest[1])
            found[Cell(task, rest[0], kind)] = [Samples(row, clusters) for row in arrays[name]]
    return Rotated(int(arrays["bits"]), found)
