"""Every program that talks to a server takes TLS and a token, by option or by variable."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("faiss", reason="the extra `search` is not installed")
pytest.importorskip("ray", reason="the extra `corpus` is not installed")

from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, made_certificates, serving

from unified_embedding.api.servers import Servers
from unified_embedding.cli import api, backfill, embed, page, search, status
from unified_embedding.client import Connection
from unified_embedding.corpus.fleet import Fleet
from unified_embedding.errors import ClientError
from unified_embedding.index import Batch, CodeIndex, Origin
from unified_embedding.load.served import served
from unified_embedding.load.service import connect

TOKEN = "s3cret"
WIDE = {"TERMINAL_WIDTH": "200", "COLUMNS": "200"}


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer(token=TOKEN, max_batch_size=16)) as running:
        yield running


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"a picture, as far as the peer can tell")
    return path


@pytest.fixture
def index(tmp_path: Path) -> CodeIndex:
    batch = Batch(["a"], codes([b"a"]), {"source": ["a.jpg"], "metadata": ["{}"]})
    return CodeIndex.build(tmp_path / "index", [batch], Origin(VERSION, ENGINE), DIM)


def run(module: ModuleType, *arguments: str, **variables: str) -> Any:
    app = typer.Typer()
    app.command()(module.main)
    return CliRunner().invoke(app, arguments, env={**WIDE, **variables})


def by_status(peer: Peer, picture: Path, index: CodeIndex) -> tuple[ModuleType, list[str]]:
    return status, []


def by_embed(peer: Peer, picture: Path, index: CodeIndex) -> tuple[ModuleType, list[str]]:
    return embed, [str(picture), "--out", str(picture.with_suffix(".npz"))]


def by_search(peer: Peer, picture: Path, index: CodeIndex) -> tuple[ModuleType, list[str]]:
    return search, [str(picture), "--index", str(index.folder)]


Command = Callable[[Peer, Path, CodeIndex], tuple[ModuleType, list[str]]]


@pytest.mark.parametrize("command", [by_status, by_embed, by_search])
def test_the_token_reaches_the_server(
    peer: Peer, picture: Path, index: CodeIndex, command: Command
) -> None:
    module, arguments = command(peer, picture, index)
    arguments += ["--url", peer.url]
    assert run(module, *arguments).exit_code != 0
    assert not peer.requests
    assert run(module, *arguments, UNIFIED_EMBEDDING_TOKEN=TOKEN).exit_code == 0
    sent = len(peer.requests)
    assert sent
    assert run(module, *arguments, "--token", TOKEN).exit_code == 0
    assert len(peer.requests) > sent or module is embed


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (api, []),
        (backfill, ["a.jpg", "--out", "corpus"]),
        (embed, ["a.jpg", "--out", "e.npz"]),
        (page, []),
        (search, ["a.jpg"]),
        (status, []),
    ],
)
def test_every_program_has_the_options(module: ModuleType, arguments: list[str]) -> None:
    said = run(module, "--help").output
    for option in ("--tls ", "--tls-ca", "--tls-cert", "--tls-key", "--token"):
        assert option in said
    half = run(module, *arguments, "--tls-key", "key.pem")
    assert half.exit_code == 2
    assert "needs a certificate and its key" in " ".join(half.output.split())


def test_a_back_fill_shows_its_token_to_every_server(peer: Peer) -> None:
    with pytest.raises(ClientError, match="UNAUTHENTICATED"):
        Fleet([peer.url]).info()
    fleet = Fleet([peer.url, peer.url], connection=Connection.of(token=TOKEN))
    assert fleet.info().version == VERSION
    fleet.close()


def test_the_api_and_its_page_show_their_token(peer: Peer) -> None:
    async def ready(connection: Connection) -> bool:
        servers = Servers([peer.url], connection)
        try:
            return await servers.is_ready()
        finally:
            await servers.close()

    assert asyncio.run(ready(Connection.of(token=TOKEN)))
    assert not asyncio.run(ready(Connection()))


def test_load_programs_take_both_from_the_environment(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFIED_EMBEDDING_TOKEN", TOKEN)
    assert connect(peer.url, 10).server.version == VERSION
    with served(peer.url) as server:
        assert server.info.version == VERSION
        assert server.connection.metadata


def test_tls_by_options_and_by_variables(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made_certificates(tmp_path)
    pair = [(tmp_path / f"server.{end}").read_bytes() for end in ("key", "pem")]
    authority = (tmp_path / "ca.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([tuple(pair)], authority, True)
    with serving(Peer(max_batch_size=16), credentials) as peer:
        files = {"CA": "ca.pem", "CERT": "client.pem", "KEY": "client.key"}
        paths = {name: str(tmp_path / file) for name, file in files.items()}
        options = [part for name, path in paths.items() for part in (f"--tls-{name.lower()}", path)]
        assert run(status, "--url", peer.url, *options).exit_code == 0
        variables = {f"UNIFIED_EMBEDDING_TLS_{name}": path for name, path in paths.items()}
        assert run(status, "--url", peer.url, **variables).exit_code == 0
        assert run(status, "--url", peer.url).exit_code == 1
