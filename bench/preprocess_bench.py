"""What it costs that `preprocess` joins no requests, by number of its instances.

Servers that differ in nothing else are measured in turns, each paused while another runs; the
figures are ratios within a round, so a slow moment of the machine counts for both sides.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from unified_embedding.errors import ServerError
from unified_embedding.load.served import REPOSITORY, pictures
from unified_embedding.measure.cost import costed_loop
from unified_embedding.measure.generator import closed_loop
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.requests import client_of, embed_request
from unified_embedding.serving import model_config
from unified_embedding.serving.local_server import LocalServer, end_in_order, start
from unified_embedding.spec import MAX_BATCH_SIZE

BATCHING: Final = "batching, 2 instances"
SETTINGS: Final = {BATCHING: 2, "2 instances": 2, "3 instances": 3, "4 instances": 4}
CALLERS: Final = (1, 8, 32)
WARM_UP_S: Final = 0.3

console = Console(highlight=False)


def main(
    rounds: Annotated[int, typer.Option(help="Each measures every setting once.")] = 8,
    seconds: Annotated[float, typer.Option(help="Seconds of one measurement.")] = 2.0,
) -> None:
    """Print images/s and CPU time against `BATCHING`, with 95 % intervals over the rounds."""
    end_in_order()
    images = pictures()
    rates: dict[tuple[str, int], list[float]] = {}
    costs: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: dict[str, tuple[LocalServer, ProcessTree]] = {}
        for name, instances in SETTINGS.items():
            server = _served(folder / str(len(servers)), instances, name == BATCHING)
            tree = ProcessTree(server.process.pid)
            stack.callback(_end, server, tree)
            tree.pause()
            servers[name] = server, tree
        for number in track(range(rounds), "rounds", console=console):
            turns = list(servers.items())
            for name, (server, tree) in turns if number % 2 == 0 else reversed(turns):
                tree.resume()
                for callers in CALLERS:
                    rate, cost = asyncio.run(_one(server, tree, images, callers, seconds))
                    rates.setdefault((name, callers), []).append(rate)
                    costs.setdefault((name, callers), []).append(cost)
                tree.pause()
    console.print(f"against {BATCHING}: ratio of images/s, and of CPU time an image")
    for name in SETTINGS:
        for callers in CALLERS:
            console.print(
                f"{name:>22}, {callers:>2} callers: {np.median(rates[name, callers]):6.1f} images/s"
                f"  {_ratio(rates, name, callers)}   CPU {_ratio(costs, name, callers)}"
            )


def _served(folder: Path, instances: int, batching: bool) -> LocalServer:
    repository = folder / "model_repository"
    repository.mkdir(parents=True)
    for model in ("unified_embedding", "embedder", "binarizer"):
        (repository / model).symlink_to((REPOSITORY / model).resolve())
    shutil.copytree(REPOSITORY / "preprocess", repository / "preprocess")
    config = model_config.read(repository / "preprocess")
    config.instance_group[0].count = instances
    if batching:
        config.max_batch_size = MAX_BATCH_SIZE
        config.dynamic_batching.SetInParent()
        for tensor in (*config.input, *config.output):
            del tensor.dims[0]
    model_config.write(repository / "preprocess", config)
    return start(repository, folder / "tritonserver.log")


async def _one(
    server: LocalServer, tree: ProcessTree, images: tuple[bytes, ...], callers: int, seconds: float
) -> tuple[float, float]:
    async with client_of(server.grpc_url, 120.0) as client:
        request = embed_request(client, images)
        await closed_loop(request, callers, WARM_UP_S)
        found = await costed_loop(tree, request, callers, seconds)
    if found.recorder.failed or found.cpu_ms is None:
        raise ServerError(f"a request failed: {list(found.recorder.examples.values())}")
    return found.images_per_s, found.cpu_ms


def _ratio(seen: Mapping[tuple[str, int], list[float]], name: str, callers: int) -> str:
    """Geometric mean of the rounds' ratios to `BATCHING`, with its bootstrapped interval."""
    logs = np.log(seen[name, callers]) - np.log(seen[BATCHING, callers])
    drawn = np.random.default_rng(0).choice(logs, (10_000, len(logs))).mean(axis=1)
    low, high = np.exp(np.percentile(drawn, [2.5, 97.5]))
    return f"{np.exp(logs.mean()):.3f} [{low:.3f}, {high:.3f}]"


def _end(server: LocalServer, tree: ProcessTree) -> None:
    tree.resume()
    server.stop()


if __name__ == "__main__":
    typer.run(main)
