"""One setting of `make tune` as a real server, and one round of measuring it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.triton_config import render
from unified_embedding.errors import ServerError
from unified_embedding.measure.cost import costed_loop
from unified_embedding.measure.generator import closed_loop
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.requests import CLOSED_LOOP_TIMEOUT_S, client_of, embed_request
from unified_embedding.names import DEFAULT
from unified_embedding.serving import model_config
from unified_embedding.serving.local_server import start
from unified_embedding.serving.repository import STATIC_MODELS
from unified_embedding.spec import EmbedderSpec

CALLERS: Final = 32
WARM_UP_S: Final = 0.4


@dataclass(frozen=True)
class Reading:
    """One round.

    Attributes:
        images_per_s: of `CALLERS` callers.
        cpu_ms: CPU time of the server's processes for one of their pictures.
        p50_ms: what a single caller waits.
    """

    images_per_s: float
    cpu_ms: float
    p50_ms: float


class TunedServer:
    """The installed engine, run as a configuration says."""

    def __init__(self, config: EmbedderConfig, installed: Path, folder: Path) -> None:
        """Start it; `folder` is for its repository and its log. Raises ServerUnavailable."""
        repository = folder / "model_repository"
        embedder = repository / DEFAULT.embedder
        embedder.mkdir(parents=True)
        for name in STATIC_MODELS:
            (repository / name).symlink_to((installed / name).resolve())
        engine = (installed / DEFAULT.embedder).resolve()
        (embedder / "1").symlink_to(engine / "1")
        spec = EmbedderSpec.load(engine / "1")
        stated = json.loads((engine / "1" / "engine.json").read_text())["engine"]
        model_config.write(embedder, render(config, spec, stated))
        self._server = start(repository, folder / "tritonserver.log")
        self.tree = ProcessTree(self._server.process.pid)

    @property
    def url(self) -> str:
        """Its gRPC address."""
        return self._server.grpc_url

    def stop(self) -> None:
        """Stop it, also when it is paused."""
        self.tree.resume()
        self._server.stop()


async def one_round(server: TunedServer, pictures: Sequence[bytes], seconds: float) -> Reading:
    """Measure a paused server: many callers, then a single one for half as long.

    Raises:
        ServerError: a request failed.
    """
    server.tree.resume()
    try:
        async with client_of(server.url, CLOSED_LOOP_TIMEOUT_S) as client:
            request = embed_request(client, pictures)
            await closed_loop(request, CALLERS, WARM_UP_S)
            found = await costed_loop(server.tree, request, CALLERS, seconds)
            one = await closed_loop(request, 1, seconds / 2, WARM_UP_S)
    finally:
        server.tree.pause()
    many = found.recorder
    if many.failed or one.failed or not one.completed:
        said = [*many.examples.values(), *one.examples.values(), "no answer in time"][0]
        raise ServerError(f"a request failed while tuning: {said}")
    assert found.cpu_ms is not None  # Its processes are here.
    return Reading(found.images_per_s, found.cpu_ms, one.latencies.percentile_ms(50))
