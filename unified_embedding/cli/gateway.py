"""The gateway before the servers: TLS, keys, the calls that are open, balancing. docs/gateway.md.

unified-embedding gateway run --demo                                  # in a clone: brings all along
unified-embedding gateway keys keys.txt --folder /etc/gateway         # again whenever keys change
unified-embedding gateway servers 10.0.0.7:8001 10.0.0.8:8001 --folder /etc/gateway
unified-embedding gateway run --folder /etc/gateway --address 0.0.0.0 --api 10.0.0.9:8088
"""

import contextlib
import os
import secrets
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from unified_embedding.checkout import ROOT, WORK
from unified_embedding.cli.main import lacking
from unified_embedding.cli.options import errors, failing
from unified_embedding.client import EmbedderClient
from unified_embedding.errors import SetupError
from unified_embedding.gateway import envoy, folder
from unified_embedding.serving.local_server import child, end_in_order, free_ports
from unified_embedding.serving.tritonserver import is_taken

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

_HEALTHY_S: Final = 120.0
_API_LOG: Final = "api.log"
_ACCESS_LOG: Final = "access.log"
_PICTURE: Final = "demo/shots/blendswap-cc-by-arbolito-1.jpg"

FOLDER: Final = WORK / "out" / "gateway"
Place = Annotated[Path, typer.Option("--folder", help="the gateway's folder")]


@app.command()
def keys(
    file: Annotated[Path, typer.Argument(help="file with a line TEAM KEY for each key")],
    place: Place = FOLDER,
) -> None:
    """Hand the teams' keys to the gateway and, as digests, to the HTTP API; no restart."""
    with failing("gateway"):
        pairs = folder.read_keys(file)
        folder.write_keys(place, pairs)
        teams = len({team for team, _ in pairs})
        errors.print(
            f"{len(pairs)} keys of {teams} teams: {place / folder.ENVOY_KEYS} for the gateway, "
            f"{place / folder.API_KEYS} for the API's --keys"
        )


@app.command()
def servers(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="ADDRESS:GRPC_PORT[:HTTP_PORT] of each server")
    ] = None,
    place: Place = FOLDER,
) -> None:
    """Say where the servers are; one that is left out gets no new call."""
    with failing("gateway"):
        there = [_asked(text) for text in addresses or ()]
        folder.write_servers(place, there)
        errors.print(f"{len(there)} servers: {place / folder.ENDPOINTS}")
        if len({server.version for server in there}) > 1:
            errors.print(f"calls that name no version go to version {there[0].version}")


@app.command()
def run(
    place: Place = FOLDER,
    address: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port for gRPC and HTTP, both by TLS")] = 8443,
    admin_port: Annotated[int, typer.Option(help="port of Envoy's own interface")] = 9901,
    api: Annotated[str, typer.Option(help="host:port of the HTTP API")] = folder.Settings.api,
    rate: Annotated[int, typer.Option(help="calls a second that a key may make")] = (
        folder.Settings.rate
    ),
    prefix: Annotated[str, typer.Option(help="of the models' names (PREFIX of make engine)")] = "",
    drain: Annotated[
        float, typer.Option(help="most seconds for the calls under way, after SIGTERM")
    ] = 10.0,
    demo: Annotated[
        bool, typer.Option("--demo", help="start a server and the HTTP API, make certificate, key")
    ] = False,
    repository: Annotated[Path, typer.Option(help="--demo: Triton's model repository")] = (
        ROOT / "model_repository"
    ),
) -> None:
    """Run the gateway until it is told to end."""
    end_in_order()
    with failing("gateway"), contextlib.ExitStack() as stack:
        for option, where, number in (
            ("--port", address, port),
            ("--admin-port", "127.0.0.1", admin_port),
        ):
            if is_taken(where, number):
                raise SetupError(
                    f"port {number} is in use, by another gateway perhaps; end that, or choose "
                    f"another by {option}"
                )
        if demo:
            api, key = stack.enter_context(_demo(place, repository))
        settings = folder.Settings(address, port, admin_port, api, rate=rate, prefix=prefix)
        folder.write_configuration(place, settings)
        for needed in (folder.CERTIFICATE, folder.CERTIFICATE_KEY, folder.ENVOY_KEYS):
            if not (place / needed).is_file():
                raise SetupError(f"there is no {place / needed}; docs/gateway.md says what it is")
        if not (place / folder.ENDPOINTS).is_file():
            raise SetupError(f"{place} names no server; run: unified-embedding gateway servers")
        log = place / _ACCESS_LOG if demo else None
        gateway = stack.enter_context(envoy.running(place, admin_port, log))
        stack.callback(gateway.drain, drain)
        if demo:
            _wait_until_healthy(place, port)
            _greet(place, port, key)
        else:
            errors.print(f"https://{address}:{port}")
        sys.exit(gateway.process.wait())


@contextlib.contextmanager
def _demo(place: Path, repository: Path) -> Iterator[tuple[str, str]]:
    """A server, and API and page over the demo catalogue; the API's address, and a key."""
    # Index and page are needed for this alone.
    try:
        from unified_embedding.cli.page import demo_site
    except ImportError as error:
        lacking("gateway", "search", error)
    key = _key(place)
    if not (place / folder.CERTIFICATE).is_file():
        folder.certify(place)
    with demo_site(repository, place / "demo") as (server, index):
        folder.write_servers(place, [_asked(f"{server.grpc_url}:{_port(server.http_url)}")])
        (port,) = free_ports(1)
        # On loopback, where only the gateway and this machine's users reach it.
        command = [
            sys.executable, "-m", "unified_embedding.cli", "api", "--server", server.grpc_url,
            "--port", str(port), "--page", "--index", str(index),
        ]  # fmt: skip
        log = (place / _API_LOG).open("wb")
        with log, child(command, stdout=log, stderr=subprocess.STDOUT):
            yield f"127.0.0.1:{port}", key


def _port(url: str) -> str:
    return url.rpartition(":")[2]


def _key(place: Path) -> str:
    """The first key of the folder's own keys.txt, which is made when there is none."""
    file = place / "keys.txt"
    if not file.is_file():
        place.mkdir(parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as opened:
            opened.write(f"demo {secrets.token_hex(32)}\n")
    pairs = folder.read_keys(file)
    folder.write_keys(place, pairs)
    return pairs[0][1]


def _asked(text: str) -> folder.Server:
    """A server, with the version that it says it serves."""
    server = folder.Server.parse(text)
    with EmbedderClient(server.grpc_url) as client:
        return folder.Server.parse(text, client.info().version)


def _wait_until_healthy(place: Path, port: int) -> None:
    """Wait for a server that embeds, and for the API. Raises SetupError."""
    trusting = ssl.create_default_context(cafile=place / folder.CERTIFICATE)
    end = time.monotonic() + _HEALTHY_S
    for path in ("/healthz", "/v1/health/ready"):
        while True:
            try:
                address = f"https://localhost:{port}{path}"
                with urllib.request.urlopen(address, timeout=5, context=trusting):
                    break
            except OSError as error:
                if time.monotonic() > end:
                    raise SetupError(
                        f"{path} is not well ({error}); the API's log is {place / _API_LOG}"
                    ) from error
            time.sleep(0.1)


def _greet(place: Path, port: int, key: str) -> None:
    certificate = place / folder.CERTIFICATE
    errors.print(f"""
gateway   https://localhost:{port}: gRPC, and the HTTP API under /v1 (Ctrl-C ends it)
key       {key}
page      https://localhost:{port}/?key={key}
log       {place / _ACCESS_LOG}: a line for each call

curl --cacert {certificate} -H 'Authorization: Bearer {key}' -H 'Content-Type: image/jpeg' \
--data-binary @{_PICTURE} https://localhost:{port}/v1/embeddings
""")
