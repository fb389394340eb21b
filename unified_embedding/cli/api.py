"""The HTTP API in front of one or several embedding servers.

unified-embedding api                                  # beside a running server
unified-embedding api --demo                           # in a clone: starts a server first
unified-embedding api --server a:8001 --server b:8001 --index out/index --keys keys.txt
"""

import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
import uvicorn
from rich.console import Console

from unified_embedding.api.app import Api, Settings
from unified_embedding.api.bodies import BodyLimits
from unified_embedding.checkout import ROOT
from unified_embedding.cli.options import connecting
from unified_embedding.client import DEFAULT_URL, Connection
from unified_embedding.errors import EmbeddingError
from unified_embedding.serving.local_server import running

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class _Server(uvicorn.Server):
    """Ends in order, and with code 0, when it is told to.

    First it is not ready for `drain` seconds, so that balancers look elsewhere; then it takes no
    new connections and answers what is under way. A second signal does not wait.
    """

    def __init__(self, config: uvicorn.Config, api: Api, drain: float) -> None:
        super().__init__(config)
        self._api, self._drain = api, drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not uvicorn's own, which dies of the signal in the end."""
        if self.should_exit or self._api.draining:
            self.should_exit = self.force_exit = True
            return
        self._api.draining = True
        if self._drain and sig == signal.SIGTERM:
            asyncio.get_running_loop().call_later(self._drain, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        self.should_exit = True


@connecting
def main(
    server: Annotated[
        list[str] | None,
        typer.Option(
            help="gRPC address of an embedding server; repeat it", show_default=DEFAULT_URL
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8088,
    index: Annotated[Path | None, typer.Option(help="index that POST /v1/search searches")] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option(
            "--keys", help="file of keys, a line NAME SHA256 each; without it everybody may call"
        ),
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="web origin whose pages may call (CORS); repeat it")
    ] = None,
    timeout: Annotated[float, typer.Option(help="most seconds for an answer")] = 60.0,
    pictures: Annotated[int, typer.Option(help="most pictures in work at a time")] = 1024,
    body_bytes: Annotated[int, typer.Option(help="most bytes of a body")] = BodyLimits.bytes,
    drain: Annotated[
        float, typer.Option(help="seconds between not being ready and ending, after SIGTERM")
    ] = 0.0,
    demo: Annotated[bool, typer.Option("--demo", help="start an embedding server first")] = False,
    *,
    connection: Connection,
) -> None:
    """Serve the HTTP API."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        with contextlib.ExitStack() as stack:
            if demo:
                console.print("starting tritonserver ...")
                server, connection = (
                    [stack.enter_context(running(ROOT / "model_repository")).grpc_url],
                    Connection(),
                )
            settings = Settings(
                urls=server or [DEFAULT_URL],
                connection=connection,
                keys=keys_file,
                origins=origin or (),
                bodies=BodyLimits(bytes=body_bytes),
                pictures_in_work=pictures,
                timeout=timeout,
            )
            api = Api(settings, index=index)
            if keys_file is None and host not in ("127.0.0.1", "::1", "localhost"):
                console.print(f"listening at {host} without --keys: whoever reaches it may call")
            console.print(f"http://{host}:{port}/v1 (docs: http://{host}:{port}/docs)")
            config = uvicorn.Config(
                api, host=host, port=port, log_level="warning", access_log=False,
                timeout_graceful_shutdown=int(timeout) + 1, server_header=False,
            )  # fmt: skip
            _Server(config, api, drain).run()
    except (EmbeddingError, OSError) as error:
        console.print(f"api: {error}", style="red")
        sys.exit(2)
