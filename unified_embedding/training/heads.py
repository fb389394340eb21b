"""Proxy heads: what all have in common, and the one whose softmax covers all classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unified_embedding.errors import TrainingError
from unified_embedding.training.bank import first_proxies, sgd_
from unified_embedding.training.distributed import ALONE, Rank, sum_over_ranks
from unified_embedding.training.subsampler import UNLABELLED


def normalized_softmax(
    embedding: Tensor, proxies: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Sum over labelled rows of -log softmax of cosine / temperature at the label.

    L_norm of arXiv 1811.12649: embeddings and proxies are L2-normalised, there is no bias.

    Args:
        embedding: [B, D].
        proxies: [C, D].
        labels: int64 [B] in 0..C-1, `UNLABELLED` where an image has none.
        temperature: sigma, 0.05 in the paper's companion.

    Returns:
        A scalar; zero, with zero gradients, when no row is labelled.
    """
    labelled = labels != UNLABELLED
    rows = functional.normalize(embedding[labelled].float(), dim=1)
    cosine = rows @ functional.normalize(proxies, dim=1).T
    return functional.cross_entropy(cosine / temperature, labels[labelled], reduction="sum")


@dataclass(frozen=True)
class Sgd:
    """How proxies move: momentum and weight decay of `torch.optim.SGD`."""

    momentum: float = 0.9
    weight_decay: float = 1e-4


DEFAULT_SGD: Final = Sgd()


class ProxyHead(ABC):
    """One task's proxies. A step calls `begin`, `loss`, then backward, then `update`.

    Attributes:
        column: the manifest's label column.
        classes: number M of classes.
    """

    def __init__(self, column: str, classes: int, temperature: float, sgd: Sgd, rank: Rank) -> None:
        self.column = column
        self.classes = classes
        self.temperature = temperature
        self.sgd = sgd
        self.rank = rank
        self._labelled = 0
        self._proxies: Tensor | None = None

    @property
    @abstractmethod
    def softmax_classes(self) -> int:
        """Number of classes that one step's softmax compares."""

    @abstractmethod
    def begin(self, labels: NDArray[np.int64], step: int) -> None:
        """Announce the labels of the global batch, before the trunk runs.

        `step` numbers the draw of sampled classes.
        """

    @abstractmethod
    def loss(self, embedding: Tensor, labels: NDArray[np.int64]) -> Tensor:
        """This rank's share of the mean loss over the labelled images of the global batch.

        The shares of all ranks add up to the mean; it is zero when no image is labelled.
        """

    @abstractmethod
    def update(self, rate: float, gradient_scale: float = 1.0) -> None:
        """Add the gradients of all ranks, divide by `gradient_scale`, move the proxies."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Proxies and momentum, float32 [M, D] each; may share memory with the head."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""

    def skip(self) -> None:
        """Forget the last backward pass."""
        self._proxies = None

    def close(self) -> None:
        """Release threads and files; the head cannot be used afterwards."""
        self._proxies = None

    def _share(self, embedding: Tensor, proxies: Tensor, targets: NDArray[np.int64]) -> Tensor:
        self._proxies = proxies
        labels = torch.from_numpy(targets).to(embedding.device)
        total = normalized_softmax(embedding, proxies, labels, self.temperature)
        return total / max(1, self._labelled)

    def _take_gradient(self, scale: float) -> Tensor:
        if self._proxies is None or self._proxies.grad is None:
            raise TrainingError(f"{self.column}: update without a backward pass before it")
        gradient = sum_over_ranks(self._proxies.grad).div_(scale)
        self._proxies.grad = None
        self._proxies = None
        return gradient

    def _check_state(self, state: Mapping[str, Tensor], shape: torch.Size) -> None:
        for name in ("rows", "velocity"):
            if name not in state or state[name].shape != shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise TrainingError(
                    f"the checkpoint's {name} of {self.column} are {found}, expected {tuple(shape)}"
                )


class FullHead(ProxyHead):
    """Softmax over all classes; proxies live on the trunk's device.

    Args:
        column: the manifest's label column.
        classes: M.
        dim: D.
        seed: draws the first proxies.
        temperature: see `normalized_softmax`.
        sgd: momentum and weight decay.
        rank: this process.
    """

    def __init__(
        self,
        column: str,
        classes: int,
        dim: int,
        seed: int,
        temperature: float = 0.05,
        sgd: Sgd = DEFAULT_SGD,
        rank: Rank = ALONE,
    ) -> None:
        super().__init__(column, classes, temperature, sgd, rank)
        self.rows = first_proxies(classes, dim, seed).to(rank.device)
        self.velocity = torch.zeros_like(self.rows)

    @property
    def softmax_classes(self) -> int:
        """M."""
        return self.classes

    def begin(self, labels: NDArray[np.int64], step: int) -> None:
        """Count the labelled images of the global batch."""
        self._labelled = int((labels != UNLABELLED).sum())

    def loss(self, embedding: Tensor, labels: NDArray[np.int64]) -> Tensor:
        """See `ProxyHead.loss`."""
        return self._share(embedding, self.rows.requires_grad_(), labels)

    def update(self, rate: float, gradient_scale: float = 1.0) -> None:
        """Move every proxy."""
        gradient = self._take_gradient(gradient_scale)
        sgd_(
            self.rows.requires_grad_(False),
            self.velocity,
            gradient,
            rate,
            self.sgd.momentum,
            self.sgd.weight_decay,
        )

    def skip(self) -> None:
        """Forget the last backward pass."""
        self.rows.grad = None
        super().skip()

    def state(self) -> dict[str, Tensor]:
        """See `ProxyHead.state`."""
        return {"rows": self.rows.detach(), "velocity": self.velocity}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `ProxyHead.load`."""
        self._check_state(state, self.rows.shape)
        self.rows.detach().copy_(state["rows"])
        self.velocity.copy_(state["velocity"])
