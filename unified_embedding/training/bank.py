"""Proxies and their momentum in CPU memory, or in a file that the ranks of a host share."""

import os
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK: Final = 1 << 16


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


class ProxyBank:
    """All M proxies of a head, float32 [M, D], and the momentum of each.

    Only the rows that a step touched are written, with their momentum; the others keep both.

    Args:
        classes: M.
        dim: D.
        seed: draws the first proxies.
        path: file to map both arrays from, 8 * M * D bytes; None keeps them in memory.
        writer: with a file, only the writer creates, fills, updates and deletes it. The other
            ranks of the host open it, after the writer has made it, and see its updates.
    """

    def __init__(
        self, classes: int, dim: int, seed: int, path: Path | None = None, writer: bool = True
    ) -> None:
        self.path = path
        self.writer = writer
        self.rows: Tensor
        self.velocity: Tensor
        if path is None:
            self.rows = first_proxies(classes, dim, seed)
            self.velocity = torch.zeros(classes, dim)
            return
        if writer:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # A killed run may have left one of another size.
            with path.open("wb") as file:
                os.truncate(file.fileno(), 8 * classes * dim)
        both = torch.from_file(str(path), shared=True, size=2 * classes * dim)
        self.rows, self.velocity = both.view(2, classes, dim).unbind(0)
        if writer:
            fill_first_proxies(self.rows, seed)

    def gather(self, classes: NDArray[np.int64], pinned: bool = False) -> Tensor:
        """A copy of the rows of `classes` [K]; float32 [K, D], page-locked when `pinned`."""
        out = torch.empty(len(classes), self.rows.shape[1], pin_memory=pinned)
        return torch.index_select(self.rows, 0, torch.from_numpy(classes), out=out)

    def update(
        self,
        classes: NDArray[np.int64],
        gradient: Tensor,
        rate: float,
        momentum: float,
        decay: float,
    ) -> None:
        """One SGD step on the rows of `classes` [K], each named once; uses up `gradient` [K, D]."""
        if not self.writer:
            return
        index = torch.from_numpy(classes)
        rows, velocity = self.rows.index_select(0, index), self.velocity.index_select(0, index)
        sgd_(rows, velocity, gradient, rate, momentum, decay)
        self.rows.index_copy_(0, index, rows)
        self.velocity.index_copy_(0, index, velocity)

    def close(self) -> None:
        """Delete the mapped file, if this rank made one."""
        if self.path is not None and self.writer:
            self.path.unlink(missing_ok=True)
