"""The search page: drop a photo, drag a box on it, see what is alike.

python clients/page.py --index out/index            # beside a running server
python clients/page.py --demo                       # brings server, corpus and index along

It is `unified-embedding api --page` with the defaults of one person's machine: on loopback, the
index of out/index, no access log.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from unified_embedding.api.app import Api, Settings
from unified_embedding.api.guard import Hosts
from unified_embedding.api.log import Book
from unified_embedding.api.process import serve
from unified_embedding.checkout import ROOT
from unified_embedding.cli.options import HostNames, Roots, Urls, connecting, errors, failing
from unified_embedding.client import DEFAULT_URL, Connection
from unified_embedding.client._connection import VARIABLES
from unified_embedding.errors import EngineWarning
from unified_embedding.search.searching import DEFAULT_INDEX
from unified_embedding.serving.local_server import LocalServer, end_in_order, run, running


@connecting
def main(
    index: Annotated[
        Path, typer.Option(help="folder of the index", envvar="UNIFIED_EMBEDDING_INDEX")
    ] = DEFAULT_INDEX,
    url: Urls = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8080,
    host_name: HostNames = None,
    root: Roots = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="start a server and index the demo catalogue first")
    ] = False,
    repository: Annotated[Path, typer.Option(help="--demo: Triton's model repository")] = ROOT
    / "model_repository",
    work: Annotated[Path, typer.Option(help="--demo: where corpus and index are kept")] = (
        ROOT / "out" / "page"
    ),
    *,
    connection: Connection,
) -> None:
    """Serve the search page."""
    # The page itself says so when engines differ.
    warnings.simplefilter("ignore", EngineWarning)
    urls = url or [DEFAULT_URL]
    with failing("page"), contextlib.ExitStack() as stack:
        if demo:
            end_in_order()
            server, index = stack.enter_context(demo_site(repository, work))
            urls, connection = [server.grpc_url], Connection()
        settings = Settings(
            urls, connection, hosts=Hosts(host, host_name or ()), page=True, roots=root or ()
        )
        api = Api(settings, book=Book(None), index=index)
        assert api.search is not None  # an index is given
        search = api.search.get()
        shown = ", ".join(map(str, search.pictures.roots))
        errors.print(f"pictures shown from: {shown or 'none; name their folders by --root'}")
        errors.print(f"{len(search.index):,} pictures: http://{host}:{port} (Ctrl-C ends it)")
        serve(api, host, port)


@contextlib.contextmanager
def demo_site(repository: Path, work: Path) -> Iterator[tuple[LocalServer, Path]]:
    """A local server, and an index of the demo catalogue for the embedder it serves."""
    errors.print("starting tritonserver ...")
    with running(repository) as server:
        # The server may have been built with another model since the last time: a corpus per
        # version, and an index that is built anew, take seconds for 120 pictures.
        program = [sys.executable, str(ROOT / "clients" / "backfill.py"), "demo/catalogue"]
        options = ["--metadata", "demo/gallery.csv", "--embeddings", "--url", server.grpc_url]
        _run([*program, *options, "--out", str(work / "corpus")])
        version = _version(server.grpc_url)
        program = [sys.executable, str(ROOT / "clients" / "index.py"), "build"]
        options = ["--version", version, "--out", str(work / "index")]
        _run([*program, str(work / "corpus"), *options])
        yield server, work / "index"


def _version(url: str) -> str:
    from unified_embedding.client import EmbedderClient

    with EmbedderClient(url) as client:
        return client.info().version


def _run(command: list[str]) -> None:
    # The server that was started here has neither TLS nor tokens.
    ours = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    if run(command, cwd=ROOT, env=ours):
        raise OSError(f"{Path(command[1]).name} failed; see above")
