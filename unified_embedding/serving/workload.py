"""How much decoding all `preprocess` processes of one server do at once."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from unified_embedding.errors import EmbeddingError
from unified_embedding.image import Limits
from unified_embedding.serving import server_files


class Busy(EmbeddingError):
    """The server has too much work of one kind for a request; the message says which."""


class LargeRequests:
    """Keeps large requests from holding every instance of a model: small ones always find one.

    A request is large when its pictures cost more than a quarter of what a request may. Each one
    in work holds a lock of the kernel's on a byte of a file that all instances open: a killed
    process holds none, and what stands in the file does not matter.
    """

    def __init__(
        self,
        model: str,
        instances: int,
        limits: Limits,
        server: int | None = None,
        folder: Path = server_files.FOLDER,
    ) -> None:
        """Open the file.

        Args:
            model: name of the model whose instances these are.
            instances: how many it has. One of them is left to small requests, if there are two.
            limits: what a request may cost.
            server: see `server_files.path_of`.
            folder: of the shared files.
        """
        self._path = server_files.path_of(f"large-{model}", server, folder)
        self._file = server_files.open_own(self._path, create=True)
        self._slots = max(1, instances - 1)
        self._large = limits.max_request_pixels // 4

    @contextlib.contextmanager
    def room_for(self, cost: int) -> Iterator[None]:
        """Hold room for a request while it is decoded; `cost` is the sum of `image.measure`.

        Raises:
            Busy: it is large, and as many others as may be are in work.
        """
        if cost <= self._large:
            yield
            return
        slot = self._take(cost)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, slot)

    def remove(self) -> None:
        """The server stops."""
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def _take(self, cost: int) -> int:
        for slot in range(self._slots):
            with contextlib.suppress(BlockingIOError, PermissionError):
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
                return slot
        raise Busy(
            f"too much work: decoding this request's images costs {cost:,} pixels, and the server "
            f"is decoding {self._slots} of more than {self._large:,} already. Send fewer of these "
            "at a time, or smaller ones"
        )
