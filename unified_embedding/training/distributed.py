"""The few things that differ between one process and several (torchrun)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Rank:
    """This process among its equals.

    Attributes:
        number: 0 .. world - 1 over all hosts.
        local: 0 .. within this host.
        world: number of processes.
        device: where the trunk runs.
    """

    number: int = 0
    local: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """True for the one process that writes files and draws the progress bar."""
        return self.number == 0

    @property
    def first_of_host(self) -> bool:
        """True for the one process of this host that writes what the host shares."""
        return self.local == 0


ALONE: Final = Rank()
"""One process, on the CPU."""


@contextmanager
def join_ranks() -> Iterator[Rank]:
    """Join the process group that torchrun describes; alone when it describes none.

    NCCL on CUDA devices, gloo on CPU.
    """
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield Rank(device=device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Rank(dist.get_rank(), local, dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add `tensor` over all ranks in place; returns it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def gather_text(text: str) -> list[str]:
    """`text` of every rank, in order of rank."""
    if not dist.is_initialized():
        return [text]
    texts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return texts
