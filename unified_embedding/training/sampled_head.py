"""The head for many classes: softmax over a sampled set, proxies in CPU memory."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unified_embedding.errors import TrainingError
from unified_embedding.training.bank import ProxyBank, RowOptimizer
from unified_embedding.training.distributed import ALONE, Rank, barrier
from unified_embedding.training.heads import DEFAULT_LOSS, DEFAULT_OPTIMIZER, ProxyHead
from unified_embedding.training.losses import ProxyLoss
from unified_embedding.training.subsampler import UNLABELLED, relabel, sample_classes


class SampledHead(ProxyHead):
    """Softmax over K sampled classes; all M proxies stay in CPU memory.

    A thread copies the sampled rows to the device while the trunk runs, and writes the
    updated rows back while the next batch is read. The thread works in order, so a row is
    never read before its last update is in.

    Args:
        column: the manifest's label column.
        classes: M.
        dim: D.
        sampled: K.
        seed: draws the first proxies and every sampled set.
        criterion: what the head minimises, over the sampled classes.
        optimizer: how proxies move.
        rank: this process.
        file: map the bank from here instead of memory; shared by the ranks of a host.
    """

    def __init__(
        self,
        column: str,
        classes: int,
        dim: int,
        sampled: int,
        seed: int,
        criterion: ProxyLoss = DEFAULT_LOSS,
        optimizer: RowOptimizer = DEFAULT_OPTIMIZER,
        rank: Rank = ALONE,
        file: Path | None = None,
    ) -> None:
        super().__init__(column, classes, criterion, optimizer, rank)
        if sampled < 1:
            raise TrainingError(f"sampled.{column} is {sampled}; at least 1 class must be sampled")
        self.sampled = sampled
        self.seed = seed
        writes = file is None or rank.first_of_host
        if not writes:
            barrier()  # The host's first rank makes the file before it comes here.
        self.bank = ProxyBank(classes, dim, seed, optimizer, file, writes)
        if file is not None and writes:
            barrier()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"bank-{column}")
        self._stream = _side_stream(rank.device)
        self._sampled_set: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._fetched: Future[Tensor] | None = None
        self._written: Future[None] | None = None

    @property
    def softmax_classes(self) -> int:
        """min(K, M)."""
        return min(self.sampled, self.classes)

    def begin(self, labels: NDArray[np.int64], step: int) -> None:
        """Sample the classes of this step and start to copy their rows."""
        self._labelled = int((labels != UNLABELLED).sum())
        self._sampled_set = sample_classes(
            labels, self.classes, self.sampled, (self.seed, step), self.column
        )
        self._wait_for_writer()
        self._fetched = self._worker.submit(self._fetch, self._sampled_set)

    def loss(self, embedding: Tensor, labels: NDArray[np.int64]) -> Tensor:
        """See `ProxyHead.loss`."""
        if self._fetched is None:
            raise TrainingError(f"{self.column}: loss without begin before it")
        rows = self._fetched.result()
        self._fetched = None
        if self._stream is not None:
            current = torch.cuda.current_stream(self.rank.device)
            current.wait_stream(self._stream)
            rows.record_stream(current)
        return self._share(embedding, rows.requires_grad_(), relabel(labels, self._sampled_set))

    def update(self, rate: float, gradient_scale: float = 1.0) -> None:
        """Move the sampled proxies, in the background; the others stay as they are."""
        gradient = self._take_gradient(gradient_scale)
        if self._stream is None:
            self._written = self._worker.submit(self.bank.update, self._sampled_set, gradient, rate)
            return
        # The gradient travels while the trunk's optimiser runs; the thread waits for it, not
        # the training process.
        self._stream.wait_stream(torch.cuda.current_stream(self.rank.device))
        with torch.cuda.stream(self._stream):
            host = torch.empty(gradient.shape, pin_memory=True)
            host.copy_(gradient, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        gradient.record_stream(self._stream)
        self._written = self._worker.submit(
            self._update_when, arrived, self._sampled_set, host, rate
        )

    def state(self) -> dict[str, Tensor]:
        """See `ProxyHead.state`."""
        self._wait_for_writer()
        return {"rows": self.bank.rows, "kept": self.bank.kept}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `ProxyHead.load`."""
        self._check_state(state)
        if self.bank.writer:
            self.bank.rows.copy_(state["rows"])
            self.bank.kept.copy_(state["kept"])
        if self.bank.path is not None:
            barrier()

    def close(self) -> None:
        """Finish pending writes, stop the thread and delete a mapped file."""
        super().close()
        self._worker.shutdown()
        self.bank.close()

    def _fetch(self, classes: NDArray[np.int64]) -> Tensor:
        if self._stream is None:
            return self.bank.gather(classes)
        with torch.cuda.stream(self._stream):
            rows = self.bank.gather(classes, pinned=True)
            return rows.to(self.rank.device, non_blocking=True)

    def _update_when(
        self, arrived: torch.cuda.Event, classes: NDArray[np.int64], host: Tensor, rate: float
    ) -> None:
        arrived.synchronize()
        self.bank.update(classes, host, rate)

    def _wait_for_writer(self) -> None:
        """Surface errors of the last update; in a shared file, let every rank see it."""
        if self._written is not None:
            self._written.result()
            self._written = None
        if self.bank.path is not None:
            barrier()


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream on which rows travel to the GPU while the trunk computes; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
