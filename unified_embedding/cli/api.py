"""The HTTP API in front of one or several embedding servers.

unified-embedding api                                  # beside a running server
unified-embedding api --demo                           # in a clone: starts a server first
unified-embedding api --server a:8001 --server b:8001 --index out/index --keys keys.txt

With --index it searches too; with --page the search page stands before it (`page` is the same with
the defaults of one person's machine).
"""

import contextlib
import logging
import warnings
from pathlib import Path
from typing import Annotated

import typer

from unified_embedding.api.app import Api, Settings
from unified_embedding.api.bodies import BodyLimits
from unified_embedding.api.guard import LOOPBACK, Hosts
from unified_embedding.api.process import serve
from unified_embedding.checkout import ROOT
from unified_embedding.cli.options import HostNames, Roots, connecting, errors, failing
from unified_embedding.client import DEFAULT_URL, Connection
from unified_embedding.errors import EngineWarning
from unified_embedding.serving.local_server import end_in_order, running


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
    page: Annotated[
        bool,
        typer.Option("--page", help="serve the search page too; needs --index, excludes --keys"),
    ] = False,
    root: Roots = None,
    host_name: HostNames = None,
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
    logging.getLogger("faiss").setLevel(logging.WARNING)  # It tells how it was loaded.
    # Answers say so themselves when engines differ.
    warnings.simplefilter("ignore", EngineWarning)
    guarded = page or bool(host_name) or host in LOOPBACK
    with failing("api"), contextlib.ExitStack() as stack:
        if demo:
            end_in_order()
            errors.print("starting tritonserver ...")
            server, connection = (
                [stack.enter_context(running(ROOT / "model_repository")).grpc_url],
                Connection(),
            )
        settings = Settings(
            urls=server or [DEFAULT_URL],
            connection=connection,
            keys=keys_file,
            origins=origin or (),
            hosts=Hosts(host, host_name or ()) if guarded else None,
            page=page,
            roots=root or (),
            bodies=BodyLimits(bytes=body_bytes),
            pictures_in_work=pictures,
            timeout=timeout,
        )
        api = Api(settings, index=index)
        if keys_file is None and host not in LOOPBACK:
            errors.print(f"listening at {host} without --keys: whoever reaches it may call")
        errors.print(f"http://{host}:{port}/v1 (docs: http://{host}:{port}/docs)")
        serve(api, host, port, drain)
