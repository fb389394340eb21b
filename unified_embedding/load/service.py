"""The service under test, as all users of one process share it."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from unified_embedding.client import Connection, Embedded, EmbedderClient, Retry, ServerInfo
from unified_embedding.errors import ServerError

# No limit of our own: how many requests are in flight is what the load test decides.
_UNBOUNDED: Final = 1_000_000

_lock = threading.Lock()
_services: dict[str, "Service"] = {}


@dataclass(frozen=True)
class Service:
    """One connection to the server, and what it serves."""

    client: EmbedderClient
    server: ServerInfo

    def embed(self, images: Sequence[bytes], outputs: Sequence[str], timeout: float) -> int:
        """Send one request without retries, check the answer, return its size in bytes.

        Raises:
            ClientError: it failed, or an output has another shape than the server promises.
        """
        answer = self.client.embed(images, outputs=outputs, timeout=timeout)
        return self._checked_size(answer, len(images))

    def _checked_size(self, answer: Embedded, rows: int) -> int:
        size = 0
        for array, width in (
            (answer.embedding, self.server.dim),
            (answer.code, self.server.code_bytes),
        ):
            if array is None:
                continue
            if array.shape != (rows, width):
                raise ServerError(f"answer of shape {array.shape}, expected {(rows, width)}")
            size += array.nbytes
        return size


def connect(host: str, timeout: float) -> Service:
    """The process's connection to `host`, made by the first user that asks.

    Locust forks its worker processes, and a gRPC channel does not survive a fork: none may
    exist before the users start.

    Raises:
        ClientError: the server does not say what it serves.
        SettingsError: TLS or token in the environment cannot be used.
    """
    with _lock:
        if host not in _services:
            options = Connection.from_environment().options()
            client = EmbedderClient(
                host, max_inflight=_UNBOUNDED, retry=Retry(attempts=1), **options
            )
            _services[host] = Service(client, client.info(timeout=timeout))
        return _services[host]
