"""Backward-compatible training: new queries that may search an old embedder's index.

Shen, Xiong, Xia and Soatto, "Towards Backward-Compatible Representation Learning", CVPR 2020
(arXiv 2003.11942): beside its own proxies the new embedding is classified by the old embedder's,
which never move. Where the old embedder left no proxy of a class, the mean of its embeddings of
the class's training pictures stands in (section 3.3 there).
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from unified_embedding.errors import TrainingError, shown
from unified_embedding.image import Preprocessing
from unified_embedding.onnx_runner import on_onnxruntime
from unified_embedding.spec import SPEC_FILE, digest
from unified_embedding.training import checkpoint
from unified_embedding.training.class_means import class_sums
from unified_embedding.training.config import CompatibleConfig, Config
from unified_embedding.training.distributed import Rank, gather_text
from unified_embedding.training.examples import Examples
from unified_embedding.training.heads import ProxyHead, labelled_loss
from unified_embedding.training.losses import NormalizedSoftmax
from unified_embedding.training.model import FixedMap, UnifiedEmbedder
from unified_embedding.training.subsampler import UNLABELLED, relabel, sample_classes
from unified_embedding.whole_files import whole_file

CACHE: Final = "old_classifier.npz"
"""In the run's folder: what a resumed run reads instead of embedding the pictures again."""
_MAP: Final = ("mean", "rotation")


@dataclass(frozen=True, eq=False)
class OldEmbedder:
    """What the new embedder has to stay compatible with.

    Attributes:
        source: as it was named.
        id: of its weights and preprocessing: the version of a released embedder.
        version: of a released embedder; None for a run, which has none before it is exported.
        model: pixels uint8 [N, S, S, 3] -> embedding [N, D].
        preprocessing: how pictures become its pixels.
        dim: D.
        fixed_map: "mean" [D] and "rotation" [D, D] in front of its LayerNorm; empty without one.
        classes: label column -> classes of which it has a proxy.
        proxies: label column -> float32 [M, D] in the order of these.
    """

    source: str
    id: str
    version: str | None
    model: nn.Module
    preprocessing: Preprocessing
    dim: int
    fixed_map: Mapping[str, Tensor]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    proxies: Mapping[str, Tensor] = field(default_factory=dict)


def open_old(source: str) -> OldEmbedder:
    """A released folder (embedder.onnx, spec.json), or last.pt or best.pt of a run.

    Raises:
        TrainingError: it is neither, or cannot stand in an index.
        SpecError: the folder's files do not belong together.
    """
    path = Path(source)
    if (path / SPEC_FILE).exists():
        return _released(path)
    if path.suffix == ".pt":
        return _of_run(path)
    raise TrainingError(
        f"compatible_with {shown(source)} is no embedder: give a released folder with "
        "embedder.onnx and spec.json, or last.pt of a run"
    )


def build_influence(
    config: Config,
    examples: Examples,
    classes: Mapping[str, Sequence[str]],
    model: UnifiedEmbedder,
    heads: Sequence[ProxyHead],
    rank: Rank,
) -> "Influence | None":
    """The old embedder's part in the loss, where the configuration names one.

    The new model starts with the old one's fixed map, so that both speak of the same coordinates
    and signs from the first step on. Collective: the ranks share the work of the class means.

    Raises:
        TrainingError, SpecError: see `open_old`; or the width or the map does not fit.
    """
    if config.compatible_with is None:
        return None
    old = open_old(config.compatible_with.old)
    _fit(old, model)
    unit = _classifier(old, examples, classes, Path(config.run), rank)
    return Influence(config.compatible_with, old, heads, unit, config.seed, rank.device)


class Influence:
    """The old classifier on the new embedding: the influence loss.

    It has the head's temperature and, of a sampled head, as many sampled classes; their rows wait
    in CPU memory.

    Args:
        config: path and weight.
        old: the embedder.
        heads: of the new model; each takes part in its own column.
        rows: label column -> the old classifier, float32 [M, D].
        seed: of the sampled classes.
        device: of the embedding.
    """

    def __init__(
        self,
        config: CompatibleConfig,
        old: OldEmbedder,
        heads: Sequence[ProxyHead],
        rows: Mapping[str, Tensor],
        seed: int,
        device: torch.device,
    ) -> None:
        self.weight = config.weight
        self.heads = list(heads)
        self.seed = seed
        self.rows = {
            head.column: rows[head.column].to(device)
            if head.softmax_classes == head.classes
            else rows[head.column]
            for head in heads
        }
        self.summary: dict[str, Any] = {
            "old": old.source,
            "id": old.id,
            "version": old.version,
            "weight": config.weight,
        }

    def losses(
        self,
        embedding: Tensor,
        labels: Sequence[NDArray[np.int64]],
        slots: NDArray[np.int64],
        step: int,
    ) -> list[Tensor]:
        """This rank's share of each head's mean influence loss, without the weight.

        Args:
            embedding: of this rank's pictures, [B / world, D].
            labels: of the global batch, int64 [B] for each head.
            slots: this rank's places in the batch.
            step: numbers the draw of sampled classes.
        """
        return [
            self._share(head, embedding, numbers, slots, step)
            for head, numbers in zip(self.heads, labels, strict=True)
        ]

    def _share(
        self,
        head: ProxyHead,
        embedding: Tensor,
        numbers: NDArray[np.int64],
        slots: NDArray[np.int64],
        step: int,
    ) -> Tensor:
        rows, targets = self.rows[head.column], numbers[slots]
        if head.softmax_classes < head.classes:
            drawn = sample_classes(
                numbers, head.classes, head.softmax_classes, (self.seed, step), head.column
            )
            rows = rows[torch.from_numpy(drawn)].to(embedding.device)
            targets = relabel(targets, drawn)
        loss = NormalizedSoftmax(head.criterion.temperature)
        return labelled_loss(loss, embedding, rows, targets, int((numbers != UNLABELLED).sum()))


def _released(folder: Path) -> OldEmbedder:
    from onnx import numpy_helper

    from unified_embedding import onnx_file

    graph, spec = onnx_file.load(folder)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    named = {name: tensors.get(f"fixed_map.{name}") for name in _MAP}
    fixed_map = {
        name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for name, tensor in named.items()
        if tensor is not None
    }
    session = _OnnxModel(graph.SerializeToString())
    return OldEmbedder(
        str(folder), spec.version, spec.version, session, spec.preprocessing, spec.dim, fixed_map
    )


def _of_run(path: Path) -> OldEmbedder:
    values = checkpoint.read(path)
    model, recipe, _ = checkpoint.load_embedder(path)
    if not recipe.layer_norm:
        raise TrainingError(
            f"compatible_with {path} was trained without LayerNorm (an ablation), which is never "
            "served and so has no index"
        )
    state = model.state_dict()
    heads = values.get("heads", {})
    return OldEmbedder(
        str(path),
        id=checkpoint.embedder_id(values),
        version=None,
        model=model,
        preprocessing=recipe.preprocessing,
        dim=model.dim,
        fixed_map={name: state[f"fixed_map.{name}"] for name in _MAP if recipe.fixed_map},
        classes={column: values["classes"][column] for column in heads},
        proxies={column: head["rows"] for column, head in heads.items()},
    )


class _OnnxModel(nn.Module):
    """A released graph on onnxruntime, on the CPU."""

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        self.run = on_onnxruntime(graph, torch.get_num_threads())

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.run(pixels.cpu().numpy()))


def _fit(old: OldEmbedder, model: UnifiedEmbedder) -> None:
    if old.dim != model.dim:
        raise TrainingError(
            f"compatible_with {old.source} has embeddings of width {old.dim}, this trunk of "
            f"{model.dim}, and those cannot be compared: choose another model.trunk"
        )
    if bool(old.fixed_map) != isinstance(model.fixed_map, FixedMap):
        has, wanted = ("a", "true") if old.fixed_map else ("no", "false")
        raise TrainingError(
            f"compatible_with {old.source} has {has} fixed map in front of LayerNorm, and the new "
            f"model starts from the same: set model.fixed_map={wanted}"
        )
    if old.fixed_map:
        model.fixed_map.load_state_dict(dict(old.fixed_map))


def _classifier(
    old: OldEmbedder,
    examples: Examples,
    classes: Mapping[str, Sequence[str]],
    run: Path,
    rank: Rank,
) -> dict[str, Tensor]:
    """Label column -> unit rows [M, D] of the old classifier, on the CPU, equal on all ranks."""
    key = digest([old.id, examples.fingerprint(), {c: list(found) for c, found in classes.items()}])
    path = run / CACHE
    rows = _cached(path, key)
    # Whoever has no file needs the others' help, also on another host.
    if all(gather_text("cached" if rows else "")):
        return rows
    rows = _computed(old, examples, classes, rank)
    if rank.first_of_host:
        run.mkdir(parents=True, exist_ok=True)
        arrays = {column: found.numpy() for column, found in rows.items()}
        with whole_file(path, fsync=True) as beside, beside.open("wb") as file:
            np.savez(file, key=np.array(key), **{f"rows {c}": a for c, a in arrays.items()})
    return rows


def _cached(path: Path, key: str) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            if str(arrays["key"]) != key:
                return {}
            return {
                name.removeprefix("rows "): torch.from_numpy(arrays[name])
                for name in arrays
                if name != "key"
            }
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return {}  # Absent or damaged: computed again.


def _computed(
    old: OldEmbedder, examples: Examples, classes: Mapping[str, Sequence[str]], rank: Rank
) -> dict[str, Tensor]:
    rows, missing = {}, {}
    for column, names in classes.items():
        rows[column] = torch.zeros(len(names), old.dim)
        place = {name: number for number, name in enumerate(old.classes.get(column, ()))}
        known = [number for number, name in enumerate(names) if name in place]
        if known:
            taken = [place[names[number]] for number in known]
            rows[column][known] = old.proxies[column][taken].float()
        numbers = examples.encoded(column, list(names))
        numbers[np.isin(numbers, known)] = UNLABELLED
        missing[column] = numbers
    counts = {column: len(found) for column, found in rows.items()}
    model = old.model.to(rank.device)
    sums = class_sums(model, old.dim, examples, missing, counts, old.preprocessing, rank)
    for column, total in sums.items():
        rows[column] += total
    return {column: functional.normalize(found, dim=1) for column, found in rows.items()}
