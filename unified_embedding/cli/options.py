"""Options that every program talking to the server has."""

from pathlib import Path
from typing import Annotated

import typer

from unified_embedding.client import TLS
from unified_embedding.errors import ImageError, shown

Url = Annotated[
    str, typer.Option(help="gRPC address of the server", envvar="UNIFIED_EMBEDDING_URL")
]
RootCertificates = Annotated[
    Path | None, typer.Option(help="connect by TLS, trusting this PEM file")
]
PrivateKey = Annotated[Path | None, typer.Option(help="mutual TLS: PEM file of our key")]
CertificateChain = Annotated[
    Path | None, typer.Option(help="mutual TLS: PEM file of our certificate")
]


def tls_from(
    root_certificates: Path | None, private_key: Path | None, certificate_chain: Path | None
) -> TLS | None:
    """TLS when any of the files is given, else None. Raises ValueError as TLS does."""
    tls = TLS(root_certificates, private_key, certificate_chain)
    return None if tls == TLS() else tls


def read_picture(path: Path) -> bytes:
    """The bytes of a picture that was named. Raises ImageError when there is no such file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"{shown(str(path))} cannot be read ({error.strerror}); name a picture by its path "
            f"from {Path.cwd()}, or by its whole path"
        ) from None
