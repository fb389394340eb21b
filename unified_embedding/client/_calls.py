"""How calls are made: where the server is, TLS and deadlines."""

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unified_embedding.errors import DeadlineExceeded, SettingsError, shown
from unified_embedding.paths import StrPath

DEFAULT_URL: Final = "127.0.0.1:8001"
# Triton's own limit of one gRPC message (MAX_GRPC_MESSAGE_SIZE in its constants.h).
MAX_MESSAGE_BYTES: Final = 2**31 - 1
# gRPC's own addresses have slashes too: dns:///host:8001, unix:/path.
_WITH_MODEL: Final = re.compile(r"(?!unix:)(.*[^/:])/([^/]+)")
CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # gRPC's own pause before it reconnects starts at 1 s and grows to 120 s; every call in
    # between fails at once, so that our retries would never reach a server that came back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Despite its name how long one attempt to connect may take; 20 s by default, which is most
    # of a caller's deadline where a lost machine's address swallows everything.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # Of a name with several addresses gRPC would use one, and leave the other servers idle.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)


@dataclass(frozen=True)
class TLS:
    """PEM files of an encrypted connection.

    Attributes:
        root_certificates: whom to trust; None for gRPC's default roots.
        private_key: the client's key, for mutual TLS; needs `certificate_chain`.
        certificate_chain: the client's certificate, for mutual TLS; needs `private_key`.
    """

    root_certificates: StrPath | None = None
    private_key: StrPath | None = None
    certificate_chain: StrPath | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError(
                "mutual TLS needs private_key and certificate_chain; only one of them was given"
            )

    def read(self) -> dict[str, bytes | None]:
        """The files' contents, by the argument names of grpc.ssl_channel_credentials."""
        return {
            name: None if path is None else Path(path).read_bytes()
            for name, path in vars(self).items()
        }


class Deadline:
    """The moment by which one call of the library must have answered.

    Attributes:
        moment: when it passes, by the clock that other machines share: seconds since 1970.
    """

    def __init__(self, timeout: float) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout {timeout!r} is not a positive number of seconds")
        self._timeout = timeout
        self._end = time.monotonic() + timeout
        self.moment = time.time() + timeout

    @property
    def left(self) -> float:
        """Seconds left; negative when it has passed."""
        return self._end - time.monotonic()

    def remaining(self) -> float:
        """Seconds left for the next step. Raises DeadlineExceeded when there are none."""
        left = self.left
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> DeadlineExceeded:
        """The error to raise when it has passed."""
        return DeadlineExceeded(
            f"no complete answer within {self._timeout:g} s; allow more time (timeout=), "
            "or send fewer pictures at once"
        )


def split_url(url: str) -> tuple[str, str]:
    """The address as gRPC takes it, and the model that stands behind it (host:port/model) or "".

    Raises:
        SettingsError: an HTTP address.
    """
    if url.startswith(("http://", "https://")):
        raise SettingsError(
            f"{shown(url)} is an HTTP address; give the gRPC address as host:port, "
            f"for instance {DEFAULT_URL} (and TLS through tls=)"
        )
    named = _WITH_MODEL.fullmatch(url)
    return (named[1], named[2]) if named else (url, "")
