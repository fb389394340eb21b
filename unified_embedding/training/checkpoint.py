"""Files of a run: the trained embedder (best.pt) and everything a resume needs (last.pt)."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from unified_embedding.errors import ImageError, TrainingError
from unified_embedding.image import Preprocessing
from unified_embedding.spec import digest
from unified_embedding.training.model import UnifiedEmbedder
from unified_embedding.whole_files import whole_file

BEST: Final = "best.pt"
LAST: Final = "last.pt"
_FORMAT: Final = 1
_WORDS: Final = ("weights", "license")  # of a recipe: change no vector


@dataclass(frozen=True)
class EmbedderRecipe:
    """What rebuilds an embedder before its weights are loaded.

    Attributes:
        trunk: timm name.
        mean: per channel, in 0..255.
        std: per channel, in 0..255.
        layer_norm: see `UnifiedEmbedder`.
        fixed_map: see `UnifiedEmbedder`.
        preprocessing: how pictures become pixels.
        weights: where the trunk's weights come from, for spec.json.
        license: SPDX expression of the weights.
    """

    trunk: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layer_norm: bool
    fixed_map: bool
    preprocessing: Preprocessing
    weights: str
    license: str

    def build(self, frozen_batch_norm: bool = True) -> UnifiedEmbedder:
        """The network with random weights."""
        return UnifiedEmbedder(
            self.trunk,
            self.preprocessing.size,
            self.mean,
            self.std,
            layer_norm=self.layer_norm,
            fixed_map=self.fixed_map,
            frozen_batch_norm=frozen_batch_norm,
        )


def save(values: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all, also through a power failure."""
    # Given a path, torch.save would put that name into the file.
    with whole_file(path, fsync=True) as beside, beside.open("wb") as file:
        torch.save({"format": _FORMAT, **values}, file)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; runs no code from the file.

    Raises:
        TrainingError: it is missing, damaged, or of another format.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path} does not exist") from None
    except Exception as error:  # torch raises many kinds on foreign files.
        raise TrainingError(f"{path} is not a readable checkpoint ({error})") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise TrainingError(f"{path} is not a checkpoint of this program's format {_FORMAT}")
    return values


def embedder_values(
    recipe: EmbedderRecipe, state: Mapping[str, Tensor], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint stores of the embedder; `summary` is plain data for the model card."""
    return {
        "recipe": asdict(recipe),
        "embedder": {name: tensor.detach().cpu() for name, tensor in state.items()},
        "summary": dict(summary),
    }


def load_embedder(path: Path) -> tuple[UnifiedEmbedder, EmbedderRecipe, dict[str, Any]]:
    """The trained embedder of best.pt or last.pt, in eval mode, its recipe and its summary.

    Raises:
        TrainingError: see `read`; or the file holds another network than it says.
    """
    values = read(path)
    try:
        raw = dict(values["recipe"])
        raw["preprocessing"] = Preprocessing(**raw["preprocessing"])
        recipe = EmbedderRecipe(**raw)
        model = recipe.build()
        model.load_state_dict(values["embedder"])
    except (KeyError, TypeError, RuntimeError, ImageError) as error:
        raise TrainingError(f"{path} holds no embedder that can be rebuilt ({error})") from error
    return model.eval(), recipe, values["summary"]


def embedder_id(values: Mapping[str, Any]) -> str:
    """Twelve hex digits of a checkpoint's embedder: its weights and how it is built."""
    tensors = [
        [
            name,
            list(tensor.shape),
            hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest(),
        ]
        for name, tensor in sorted(values["embedder"].items())
    ]
    recipe = {key: found for key, found in values["recipe"].items() if key not in _WORDS}
    return digest([tensors, recipe])


def images_seen(summary: Mapping[str, Any]) -> int | None:
    """Images that moved the trunk of this run; None when an older checkpoint does not tell.

    Steps of the first stage, in which proxies alone move, do not count.
    """
    return summary["trunk_steps"] * summary["batch"] if "trunk_steps" in summary else None
