"""Proxies and what their optimiser keeps, in CPU memory or in a file that a host's ranks share."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK: Final = 1 << 16

FIRST_NORM: Final = 3**-0.5
"""Norm of a row of `first_proxies`, nearly: D numbers of variance 1 / (3 D)."""


def first_proxies(classes: int, dim: int, seed: int) -> Tensor:
    """Initial proxies float32 [M, D], uniform in +-1/sqrt(D) (the companion code's rule)."""
    rows = torch.empty(classes, dim)
    fill_first_proxies(rows, seed)
    return rows


def fill_first_proxies(rows: Tensor, seed: int) -> None:
    """Fill `rows` [M, D] with `first_proxies`, part by part, so that no second copy is held."""
    bound = rows.shape[1] ** -0.5
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(rows), _CHUNK):
        rows[start : start + _CHUNK].uniform_(-bound, bound, generator=generator)


def sgd_(
    rows: Tensor, velocity: Tensor, gradient: Tensor, rate: float, momentum: float, decay: float
) -> None:
    """One SGD step in place, by the rule and in the order of operations of `torch.optim.SGD`.

    Overwrites `gradient` too.
    """
    velocity.mul_(momentum).add_(gradient.add_(rows, alpha=decay))
    rows.add_(velocity, alpha=-rate)


@dataclass(frozen=True)
class Sgd:
    """How proxies move: momentum and weight decay of `torch.optim.SGD`.

    A row that is sampled again resumes with the momentum of the last time it was; with few of
    the classes in each softmax that is stale, and momentum 0 or `RowwiseAdagrad` avoid it.
    """

    momentum: float = 0.9
    weight_decay: float = 1e-4

    def width(self, dim: int) -> int:
        """Numbers kept per row: its velocity."""
        return dim if self.momentum else 0

    def step_(self, rows: Tensor, kept: Tensor, gradient: Tensor, rate: float) -> None:
        """Move rows [K, D] in place; overwrites `gradient`."""
        if self.momentum:
            sgd_(rows, kept, gradient, rate, self.momentum, self.weight_decay)
        else:
            rows.add_(gradient.add_(rows, alpha=self.weight_decay), alpha=-rate)


@dataclass(frozen=True)
class RowwiseAdagrad:
    """Adagrad with one accumulator per row: the mean of the row's squared gradients, summed up.

    The rule of large embedding tables (EXACT_ROWWISE_ADAGRAD of FBGEMM): rows that are seldom
    sampled keep a large rate, and nothing goes stale.
    """

    weight_decay: float = 1e-4
    eps: float = 1e-8

    def width(self, dim: int) -> int:
        """Numbers kept per row: the accumulator."""
        return 1

    def step_(self, rows: Tensor, kept: Tensor, gradient: Tensor, rate: float) -> None:
        """Move rows [K, D] in place; overwrites `gradient`."""
        gradient.add_(rows, alpha=self.weight_decay)
        kept.add_(gradient.square().mean(dim=1, keepdim=True))
        rows.addcdiv_(gradient, kept.sqrt().add_(self.eps), value=-rate)


RowOptimizer = Sgd | RowwiseAdagrad


class ProxyBank:
    """All M proxies of a head, float32 [M, D], and what the optimiser keeps of each, [M, W].

    Only the rows that a step touched are written, with what is kept; the others keep both.

    Args:
        classes: M.
        dim: D.
        seed: draws the first proxies.
        optimizer: how rows move.
        path: file to map both arrays from, 4 * M * (D + W) bytes; None keeps them in memory.
        writer: with a file, only the writer creates, fills, updates and deletes it. The other
            ranks of the host open it, after the writer has made it, and see its updates.
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        seed: int,
        optimizer: RowOptimizer,
        path: Path | None = None,
        writer: bool = True,
    ) -> None:
        self.optimizer = optimizer
        self.path = path
        self.writer = writer
        self.rows: Tensor
        self.kept: Tensor
        width = optimizer.width(dim)
        if path is None:
            self.rows = first_proxies(classes, dim, seed)
            self.kept = torch.zeros(classes, width)
            return
        if writer:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # A killed run may have left one of another size.
            with path.open("wb") as file:
                os.truncate(file.fileno(), 4 * classes * (dim + width))
        both = torch.from_file(str(path), shared=True, size=classes * (dim + width))
        rows, kept = both[: classes * dim], both[classes * dim :]
        self.rows, self.kept = rows.view(classes, dim), kept.view(classes, width)
        if writer:
            fill_first_proxies(self.rows, seed)

    def gather(self, classes: NDArray[np.int64], pinned: bool = False) -> Tensor:
        """A copy of the rows of `classes` [K]; float32 [K, D], page-locked when `pinned`."""
        out = torch.empty(len(classes), self.rows.shape[1], pin_memory=pinned)
        return torch.index_select(self.rows, 0, torch.from_numpy(classes), out=out)

    def update(self, classes: NDArray[np.int64], gradient: Tensor, rate: float) -> None:
        """Move the rows of `classes` [K], each named once; uses up `gradient` [K, D]."""
        if not self.writer:
            return
        index = torch.from_numpy(classes)
        rows, kept = self.rows.index_select(0, index), self.kept.index_select(0, index)
        self.optimizer.step_(rows, kept, gradient, rate)
        self.rows.index_copy_(0, index, rows)
        self.kept.index_copy_(0, index, kept)

    def close(self) -> None:
        """Delete the mapped file, if this rank made one."""
        if self.path is not None and self.writer:
            self.path.unlink(missing_ok=True)
