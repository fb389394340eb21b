"""How a program reaches its servers: TLS and a token, from options or the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict

from unified_embedding.client._calls import TLS
from unified_embedding.client._metadata import bearer
from unified_embedding.errors import SettingsError, shown
from unified_embedding.paths import StrPath

URL: Final = "UNIFIED_EMBEDDING_URL"
USE_TLS: Final = "UNIFIED_EMBEDDING_TLS"
CA: Final = "UNIFIED_EMBEDDING_TLS_CA"
CERT: Final = "UNIFIED_EMBEDDING_TLS_CERT"
KEY: Final = "UNIFIED_EMBEDDING_TLS_KEY"
TOKEN: Final = "UNIFIED_EMBEDDING_TOKEN"
VARIABLES: Final = (USE_TLS, CA, CERT, KEY, TOKEN)


class Options(TypedDict):
    """Arguments of a client."""

    tls: TLS | None
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Connection:
    """TLS and a token for every client of a program: `EmbedderClient(url, **to.options())`.

    Attributes:
        tls: certificates; None for an unencrypted connection.
        metadata: sent with every call.
    """

    tls: TLS | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        tls: bool = False,
        ca: StrPath | None = None,
        cert: StrPath | None = None,
        key: StrPath | None = None,
        token: str | None = None,
    ) -> "Connection":
        """Connect by TLS when `tls` says so or a file of it is given.

        Raises:
            SettingsError: half of mutual TLS, or a token that is none.
        """
        if bool(cert) != bool(key):
            raise SettingsError(
                "mutual TLS needs a certificate and its key, and only one was given; give "
                f"--tls-cert and --tls-key, or set {CERT} and {KEY}"
            )
        files = TLS(ca or None, key or None, cert or None)
        try:
            metadata = bearer(token) if token else {}
        except ValueError as error:
            raise SettingsError(str(error)) from None
        return cls(files if tls or files != TLS() else None, metadata)

    @classmethod
    def from_environment(cls) -> "Connection":
        """What UNIFIED_EMBEDDING_TLS, _TLS_CA, _TLS_CERT, _TLS_KEY and _TOKEN say.

        Raises:
            SettingsError: as `of`, or UNIFIED_EMBEDDING_TLS is neither 0 nor 1.
        """
        said = os.environ.get(USE_TLS) or "0"
        if said not in ("0", "1"):
            raise SettingsError(f"{USE_TLS}={shown(said)} is neither 0 nor 1")
        return cls.of(
            tls=said == "1",
            ca=os.environ.get(CA),
            cert=os.environ.get(CERT),
            key=os.environ.get(KEY),
            token=os.environ.get(TOKEN),
        )

    def options(self) -> Options:
        """The arguments of a client."""
        return {"tls": self.tls, "metadata": self.metadata}
