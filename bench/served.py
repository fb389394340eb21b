"""The server that a program measures: one that runs already, or one started for the purpose."""

import contextlib
import itertools
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from rich.console import Console

from unified_embedding.client import AsyncEmbedderClient, EmbedderClient, Retry, ServerInfo
from unified_embedding.local_server import running
from unified_embedding.measure.generator import Request
from unified_embedding.measure.pictures import scaled
from unified_embedding.measure.processes import ProcessTree

ROOT: Final = Path(__file__).resolve().parent.parent
REPOSITORY: Final = ROOT / "model_repository"
RESULTS: Final = ROOT / "results"
# What a photograph in a feed has, about: 38 kB as a JPEG of the demo's shots.
PICTURE_SIZE: Final = (640, 480)
UNBOUNDED: Final = 1_000_000

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
    return scaled(str(ROOT / "demo" / "shots"), *PICTURE_SIZE)


def client_of(url: str, timeout: float = 30.0) -> AsyncEmbedderClient:
    """A client that bounds and retries nothing: the load decides."""
    return AsyncEmbedderClient(
        url, max_inflight=UNBOUNDED, retry=Retry(attempts=1), timeout=timeout
    )


def embed_request(
    client: AsyncEmbedderClient, images: Sequence[bytes], per_request: int = 1
) -> Request:
    """Requests for embedding and code of `per_request` pictures, taken in turn."""
    following = itertools.cycle(images)

    async def request() -> int:
        answer = await client.embed([next(following) for _ in range(per_request)])
        return len(answer)

    return request


def end_in_order() -> None:
    """Let SIGTERM unwind the program, so that it stops the servers that it started."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def fail(error: object) -> NoReturn:
    """End the program with one sentence."""
    Console(stderr=True, highlight=False).print(f"[bold red]failed:[/] {error}", soft_wrap=True)
    sys.exit(1)


def _answering(url: str) -> Served:
    with EmbedderClient(url, retry=Retry(attempts=1), timeout=10) as client:
        return Served(url, client.info(), ProcessTree.listening_at(url))
