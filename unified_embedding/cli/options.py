"""Options that every program talking to the server has."""

from pathlib import Path
from typing import Annotated

import typer

from unified_embedding.client import TLS

Url = Annotated[
    str, typer.Option(help="gRPC address of the server", envvar="UNIFIED_EMBEDDING_URL")
]
ModelName = Annotated[
    str,
    typer.Option(
        help="model to ask, where the server has several embedders",
        envvar="UNIFIED_EMBEDDING_MODEL",
    ),
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
