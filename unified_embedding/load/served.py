"""The server that a program measures: one that runs already, or one started for the purpose."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from rich.console import Console

from unified_embedding.checkout import ROOT
from unified_embedding.client import EmbedderClient, Retry, ServerInfo
from unified_embedding.measure.pictures import PHOTOGRAPH, scaled
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.serving import model_config
from unified_embedding.serving.local_server import running

REPOSITORY: Final = ROOT / "model_repository"
RESULTS: Final = ROOT / "results"

console = Console(highlight=False)


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        url: its gRPC address.
        info: what it says about itself.
        tree: its processes, or None when they are elsewhere.
    """

    url: str
    info: ServerInfo
    tree: ProcessTree | None


@contextlib.contextmanager
def served(host: str, repository: Path = REPOSITORY) -> Iterator[Served]:
    """The server at `host`, or, for "", the installed engine served on free ports.

    Raises:
        ClientError: it does not answer, or cannot be started.
    """
    if host:
        yield _answering(host)
        return
    with running(repository) as server:
        yield _answering(server.grpc_url)


def pictures() -> tuple[bytes, ...]:
    """What is sent: the demo's shots, scaled to the size of photographs."""
    return scaled(str(ROOT / "demo" / "shots"), *PHOTOGRAPH)


def inference_precision(embedder: Path) -> str:
    """OpenVINO's inference precision of an installed model_repository/embedder."""
    parameters = model_config.read(embedder).parameters
    if "inference_precision" not in parameters:
        fail(f"{embedder} holds no OpenVINO engine; build one with make engine TARGET=openvino")
    return str(parameters["inference_precision"].string_value)


def fail(error: object) -> NoReturn:
    """End the program with one sentence."""
    Console(stderr=True, highlight=False).print(f"[bold red]failed:[/] {error}", soft_wrap=True)
    sys.exit(1)


def _answering(url: str) -> Served:
    with EmbedderClient(url, retry=Retry(attempts=1), timeout=10) as client:
        return Served(url, client.info(), ProcessTree.listening_at(url))
