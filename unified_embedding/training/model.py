"""The network that becomes the served graph: pixels in, embedding out."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unified_embedding.errors import SpecError

LAYER_NORM_EPS: Final = 1e-5
"""Added to the variance inside LayerNorm; part of the graph and so of the version."""

_BATCH_NORMS: Final = (nn.modules.batchnorm._BatchNorm,)


class UnifiedEmbedder(nn.Module):
    """uint8 pixels -> normalise -> trunk -> average pool -> LayerNorm without affine.

    LayerNorm without affine parameters centres every embedding at zero, which is what the
    sign-bit code needs (arXiv 1811.12649). An optional fixed linear map in front of it
    subtracts a mean and rotates; it is off by default, as in the paper.

    Args:
        trunk: timm name, for instance "tf_efficientnet_lite0".
        size: side of the square input in pixels.
        mean: per channel, subtracted from pixels in 0..255.
        std: per channel, in 0..255, divided by afterwards.
        layer_norm: False leaves LayerNorm out (an ablation; it cannot be released).
        fixed_map: adds the linear map, as the identity until `set_fixed_map`.
        frozen_batch_norm: BatchNorm keeps its running statistics even in train mode. Small
            batches then train well, and several processes compute what one does.

    Attributes:
        dim: width D of the embedding.

    Raises:
        SpecError: timm does not know the trunk, or it does not accept the size.
    """

    def __init__(
        self,
        trunk: str,
        size: int = 224,
        mean: Iterable[float] = (127.0, 127.0, 127.0),
        std: Iterable[float] = (128.0, 128.0, 128.0),
        *,
        layer_norm: bool = True,
        fixed_map: bool = False,
        frozen_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.size = size
        self.frozen_batch_norm = frozen_batch_norm
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(tuple(mean)), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)), persistent=False)
        self.trunk = create_trunk(trunk, size)
        self.dim = _width(self.trunk, size)
        self.fixed_map = FixedMap(self.dim) if fixed_map else nn.Identity()
        self.norm = (
            nn.LayerNorm(self.dim, eps=LAYER_NORM_EPS, elementwise_affine=False)
            if layer_norm
            else nn.Identity()
        )
        self.train(self.training)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed pixels uint8 [N, S, S, 3], RGB; returns float [N, D]."""
        embedding: Tensor = self.norm(self.pooled(pixels))
        return embedding

    def pooled(self, pixels: Tensor) -> Tensor:
        """What enters LayerNorm, float [N, D]: pooled trunk features, mapped when asked."""
        # Cast comes first: TensorRT accepts uint8 at the border of the graph only.
        image = (pixels.float() - self.mean) / self.std
        features: Tensor = self.fixed_map(self.trunk(image.permute(0, 3, 1, 2)))
        return features

    def train(self, mode: bool = True) -> "UnifiedEmbedder":
        """Switch to training, keeping BatchNorm statistics where they are when frozen."""
        super().train(mode)
        if self.frozen_batch_norm:
            for layer in batch_norms(self):
                layer.eval()
        return self


class InParts(nn.Module):
    """`model` on a batch in `parts`, each of which backward computes again.

    Activations of one part at a time are kept, for one more forward pass. What stands behind it
    sees the whole batch, so that every loss and its gradient are those of the whole batch
    (the idea of GradCache, arXiv 2101.06983).
    """

    def __init__(self, model: nn.Module, parts: int) -> None:
        super().__init__()
        self.model = model
        self.parts = parts

    def forward(self, pixels: Tensor) -> Tensor:
        """What `model` returns for pixels [N, ...], up to rounding."""
        parts = pixels.chunk(self.parts)
        return torch.cat([checkpoint(self.model, part, use_reentrant=False) for part in parts])


class AveragePool(nn.Module):
    """Mean over height and width: [N, C, H, W] -> [N, C], or [N, C, 1, 1] with `keepdim`."""

    def __init__(self, keepdim: bool = False) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, maps: Tensor) -> Tensor:
        """Pool feature maps."""
        return maps.mean((2, 3), keepdim=self.keepdim)


class FixedMap(nn.Module):
    """Subtract a mean, then multiply by an orthogonal matrix; never trained.

    Standing in front of LayerNorm it spreads information evenly over the signs. Behind
    LayerNorm it would undo the centring that the codes rest on.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.rotation: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("rotation", torch.eye(dim))

    def forward(self, features: Tensor) -> Tensor:
        """Map features [N, D] to [N, D]."""
        return (features - self.mean) @ self.rotation

    def set(self, mean: NDArray[np.floating[Any]], seed: int) -> None:
        """Centre on `mean` [D] and rotate by the orthogonal matrix that `seed` draws."""
        self.mean.copy_(torch.from_numpy(np.asarray(mean, dtype=np.float32)))
        self.rotation.copy_(torch.from_numpy(random_rotation(len(self.mean), seed)))


def random_rotation(dim: int, seed: int) -> NDArray[np.float32]:
    """An orthogonal matrix [dim, dim], uniform over rotations and reflections.

    QR of a Gaussian matrix, with the signs of R's diagonal taken out (Mezzadri 2007,
    arXiv math-ph/0609050); without that step the distribution is not uniform.
    """
    gaussian = np.random.default_rng(seed).standard_normal((dim, dim))
    q, r = np.linalg.qr(gaussian)
    rotation: NDArray[np.float32] = (q * np.sign(np.diag(r))).astype(np.float32)
    return rotation


def create_trunk(name: str, size: int) -> nn.Module:
    """A timm trunk without its classifier: [N, 3, S, S] -> pooled features [N, D].

    Weights are random (the caller seeds torch); nothing is downloaded. Raises SpecError.
    """
    if name not in timm.list_models():
        close = ", ".join(timm.list_models(f"*{name}*")[:5]) or "timm.list_models() lists them"
        raise SpecError(f"timm has no trunk {name!r}; did you mean: {close}")
    arguments: dict[str, Any] = {}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        arguments["img_size"] = size
    try:
        trunk: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except (AssertionError, ValueError, TypeError) as error:
        raise SpecError(f"trunk {name} does not take images of {size} pixels ({error})") from error
    pool = getattr(trunk, "global_pool", None)
    if isinstance(pool, SelectAdaptivePool2d) and pool.pool_type == "avg":
        # The same average; timm's flatten would put batch-shape arithmetic into the graph.
        trunk.global_pool = AveragePool(keepdim=not isinstance(pool.flatten, nn.Flatten))
    return trunk


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Every BatchNorm layer inside `module`."""
    return [layer for layer in module.modules() if isinstance(layer, _BATCH_NORMS)]


@torch.no_grad()
def calibrate_batch_norm(model: UnifiedEmbedder, pixels: Tensor, batch: int = 16) -> None:
    """Give an untrained trunk BatchNorm statistics measured on pictures.

    With the initial statistics (mean 0, variance 1) a random deep trunk maps every picture to
    nearly the same vector, and any comparison of engines looks perfect. Norms that start at
    zero gain (the last of each residual branch, in some trunks) are set to one, or the
    branches would not take part at all.

    Args:
        model: changed in place.
        pixels: uint8 [N, S, S, 3], at least 2 pictures.
        batch: pictures per step.

    Raises:
        SpecError: fewer than 2 pictures.
    """
    if len(pixels) < 2:
        raise SpecError(f"BatchNorm needs at least 2 pictures to calibrate on, got {len(pixels)}")
    layers = batch_norms(model)
    momenta = [layer.momentum for layer in layers]
    was_training = model.training
    model.eval()
    for layer in layers:
        if layer.affine and not layer.weight.any():
            nn.init.ones_(layer.weight)
        layer.reset_running_stats()
        layer.momentum = None  # torch: a plain average over all steps
        layer.train()
    steps = max(1, len(pixels) // batch)
    for part in pixels.tensor_split(steps):
        model(part)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.train(was_training)
    for layer in layers:
        layer.eval() if not was_training or model.frozen_batch_norm else layer.train()


def _width(trunk: nn.Module, size: int) -> int:
    was_training = trunk.training
    trunk.eval()
    with torch.no_grad():
        features = trunk(torch.zeros(1, 3, size, size))
    trunk.train(was_training)
    if features.ndim != 2:
        raise SpecError(f"the trunk yields {tuple(features.shape)}, expected pooled [N, D]")
    return int(features.shape[1])
