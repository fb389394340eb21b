"""Proxy heads: what all have in common, and the one whose softmax covers all classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unified_embedding.errors import TrainingError
from unified_embedding.training.bank import RowOptimizer, Sgd, first_proxies
from unified_embedding.training.distributed import ALONE, Rank, sum_over_ranks
from unified_embedding.training.losses import NormalizedSoftmax, ProxyLoss
from unified_embedding.training.subsampler import UNLABELLED

DEFAULT_OPTIMIZER: Final = Sgd()
DEFAULT_LOSS: Final = NormalizedSoftmax()


def on_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """A copy on `device`, for which the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def labelled_loss(
    criterion: ProxyLoss,
    embedding: Tensor,
    proxies: Tensor,
    targets: NDArray[np.int64],
    count: int,
) -> Tensor:
    """The loss of the rows that have a label: this rank's share, see `ProxyLoss`.

    Args:
        criterion: the loss.
        embedding: [B, D].
        proxies: [C, D].
        targets: int64 [B] in 0..C-1, or `UNLABELLED`.
        count: labelled images of the global batch.
    """
    # The host knows which rows are labelled; asking the device for them would wait for it.
    labelled = np.flatnonzero(targets != UNLABELLED)
    rows = embedding.index_select(0, on_device(labelled, embedding.device))
    return criterion(rows, proxies, on_device(targets[labelled], embedding.device), count)


class ProxyHead(ABC):
    """One task's proxies. A step calls `begin`, `loss`, then backward, then `update`.

    Attributes:
        column: the manifest's label column.
        classes: number M of classes.
        criterion: what the head minimises.
    """

    def __init__(
        self, column: str, classes: int, criterion: ProxyLoss, optimizer: RowOptimizer, rank: Rank
    ) -> None:
        if criterion.over_batch and rank.world > 1:
            raise TrainingError(
                f"heads.{column}.loss compares all images of a batch; start without torchrun, or "
                "take another loss"
            )
        self.column = column
        self.classes = classes
        self.criterion = criterion
        self.optimizer = optimizer
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
        """This rank's share of the loss over the labelled images of the global batch.

        The shares of all ranks add up; it is zero when no image is labelled.
        """

    @abstractmethod
    def update(self, rate: float, gradient_scale: float = 1.0) -> None:
        """Add the gradients of all ranks, divide by `gradient_scale`, move the proxies."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Proxies float32 [M, D] and what the optimiser keeps [M, W], under "rows" and "kept".

        They may share memory with the head.
        """

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
        return labelled_loss(self.criterion, embedding, proxies, targets, self._labelled)

    def _take_gradient(self, scale: float) -> Tensor:
        if self._proxies is None or self._proxies.grad is None:
            raise TrainingError(f"{self.column}: update without a backward pass before it")
        gradient = sum_over_ranks(self._proxies.grad).div_(scale)
        self._proxies.grad = None
        self._proxies = None
        return gradient

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        for name, ours in self.state().items():
            if name not in state or state[name].shape != ours.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise TrainingError(
                    f"the checkpoint's {name} of {self.column} are {found}, expected "
                    f"{tuple(ours.shape)}"
                )


class FullHead(ProxyHead):
    """Softmax over all classes; proxies live on the trunk's device.

    Args:
        column: the manifest's label column.
        classes: M.
        dim: D.
        seed: draws the first proxies.
        criterion: what the head minimises.
        optimizer: how proxies move.
        rank: this process.
    """

    def __init__(
        self,
        column: str,
        classes: int,
        dim: int,
        seed: int,
        criterion: ProxyLoss = DEFAULT_LOSS,
        optimizer: RowOptimizer = DEFAULT_OPTIMIZER,
        rank: Rank = ALONE,
    ) -> None:
        super().__init__(column, classes, criterion, optimizer, rank)
        self.rows = first_proxies(classes, dim, seed).to(rank.device)
        self.kept = self.rows.new_zeros(classes, optimizer.width(dim))

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
        self.optimizer.step_(self.rows.requires_grad_(False), self.kept, gradient, rate)

    def skip(self) -> None:
        """Forget the last backward pass."""
        self.rows.grad = None
        super().skip()

    def state(self) -> dict[str, Tensor]:
        """See `ProxyHead.state`."""
        return {"rows": self.rows.detach(), "kept": self.kept}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `ProxyHead.load`."""
        self._check_state(state)
        self.rows.detach().copy_(state["rows"])
        self.kept.copy_(state["kept"])
