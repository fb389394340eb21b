"""What a proxy head minimises: functions of cosines between embeddings and proxies.

All of them L2-normalise embeddings and proxies, have no bias, and divide cosines by a temperature,
whose inverse other texts call the scale s or alpha.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ProxyLoss(ABC):
    """A loss over the labelled images of the global batch.

    Attributes:
        temperature: sigma, 0.05 in the paper's companion.
        over_batch: whether an image's share depends on the other images, so that every process
            would need those of all.
    """

    temperature: float = 0.05

    over_batch: ClassVar[bool] = False

    def __call__(self, embedding: Tensor, proxies: Tensor, labels: Tensor, count: int) -> Tensor:
        """These rows' share of the loss, a scalar; the shares of all processes add up.

        Args:
            embedding: [B, D].
            proxies: [C, D].
            labels: int64 [B] in 0..C-1.
            count: labelled images of the global batch.

        Returns:
            Zero, with zero gradients, for no rows.
        """
        rows = functional.normalize(embedding.float(), dim=1)
        return self._of_cosine(rows @ functional.normalize(proxies, dim=1).T, labels, count)

    @abstractmethod
    def _of_cosine(self, cosine: Tensor, labels: Tensor, count: int) -> Tensor:
        """The share, from cosines [B, C]."""


@dataclass(frozen=True)
class NormalizedSoftmax(ProxyLoss):
    """Mean of -log softmax of cosine / temperature at the label: L_norm of arXiv 1811.12649."""

    def _of_cosine(self, cosine: Tensor, labels: Tensor, count: int) -> Tensor:
        logits = self._with_margin(cosine, labels) / self.temperature
        return functional.cross_entropy(logits, labels, reduction="sum") / max(1, count)

    def _with_margin(self, cosine: Tensor, labels: Tensor) -> Tensor:
        return cosine


@dataclass(frozen=True)
class CosFace(NormalizedSoftmax):
    """The normalised softmax after `margin` is taken off the label's cosine (arXiv 1801.09414)."""

    margin: float = 0.35

    def _with_margin(self, cosine: Tensor, labels: Tensor) -> Tensor:
        return cosine - self.margin * _positive(cosine, labels)


@dataclass(frozen=True)
class ArcFace(NormalizedSoftmax):
    """The normalised softmax after `margin` radians are added to the label's angle.

    arXiv 1801.07698. Beyond pi the cosine would rise again; there cosine - margin * sin(margin)
    goes on falling, as in the authors' code.
    """

    margin: float = 0.5

    def _with_margin(self, cosine: Tensor, labels: Tensor) -> Tensor:
        own = cosine.gather(1, labels[:, None])
        # The gradient of acos has no bound at 1 and -1.
        angle = torch.acos(own.clamp(-_ALMOST_ONE, _ALMOST_ONE))
        moved = torch.where(
            angle <= math.pi - self.margin,
            torch.cos(angle + self.margin),
            own - self.margin * math.sin(self.margin),
        )
        return torch.where(_positive(cosine, labels), moved, cosine)


@dataclass(frozen=True)
class ProxyAnchor(ProxyLoss):
    """Pulls at every proxy of the batch by its hardest images, pushes all (arXiv 2003.13911).

    With s = cosine, m = margin, sigma = temperature: the mean over proxies with an image of
    log(1 + sum exp((m - s) / sigma)) over their own images, plus the mean over all proxies of
    log(1 + sum exp((s + m) / sigma)) over the others. The paper has m = 0.1, sigma = 1 / 32.
    """

    margin: float = 0.1

    over_batch: ClassVar[bool] = True

    def _of_cosine(self, cosine: Tensor, labels: Tensor, count: int) -> Tensor:
        own = _positive(cosine, labels)
        pull = _log_one_plus_sum_exp((self.margin - cosine) / self.temperature, own)
        push = _log_one_plus_sum_exp((cosine + self.margin) / self.temperature, ~own)
        present = own.any(dim=0).sum().clamp(min=1)
        return pull.sum() / present + push.mean()


_ALMOST_ONE: Final = 1 - 1e-6


def _positive(cosine: Tensor, labels: Tensor) -> Tensor:
    """bool [B, C]: whether the proxy is the image's own; without asking the device anything."""
    return labels[:, None] == torch.arange(cosine.shape[1], device=cosine.device)


def _log_one_plus_sum_exp(values: Tensor, kept: Tensor) -> Tensor:
    """log(1 + sum over rows of exp) of the values [B, C] that are kept; [C]."""
    masked = values.masked_fill(~kept, -math.inf)
    return torch.logsumexp(functional.pad(masked, (0, 0, 1, 0)), dim=0)
