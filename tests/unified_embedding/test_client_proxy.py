"""A proxy in the environment is named when a connection fails, exactly when gRPC uses it."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from kserve_peer import Peer, serving

from unified_embedding.client import AsyncEmbedderClient, EmbedderClient, Retry
from unified_embedding.errors import ServerUnavailable

ONCE = Retry(attempts=1)
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def nobody() -> Iterator[str]:
    """An address where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("variable", VARIABLES[:3])
def test_the_error_names_the_proxy_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, variable: str, nobody: str
) -> None:
    monkeypatch.setenv(variable, f"http://user:secret@{nobody}")

    async def in_asyncio(url: str) -> None:
        async with AsyncEmbedderClient(url, retry=ONCE) as embedder:
            await embedder.info()

    with serving(Peer()) as peer:
        told = []
        with pytest.raises(ServerUnavailable) as error, EmbedderClient(peer.url, retry=ONCE) as e:
            e.info()
        told.append(str(error.value))
        with pytest.raises(ServerUnavailable) as error:
            asyncio.run(in_asyncio(peer.url))
        told.append(str(error.value))
    for text in told:
        assert f"proxy {nobody}, which the environment variable {variable} names" in text
        assert "set no_proxy=127.0.0.1" in text
        assert "secret" not in text


@pytest.mark.parametrize(
    ("variable", "exceptions"),
    [
        ("no_proxy", "127.0.0.1"),
        ("no_proxy", "example.com, 127.0.0.1"),
        ("no_proxy", "0.0.1"),
        ("no_proxy", "127.0.0.0/8"),
        ("no_proxy", "10.0.0.0/8"),
        ("no_proxy", "localhost"),
        ("no_proxy", "*"),
        ("no_grpc_proxy", "127.0.0.1"),
    ],
)
def test_exceptions_are_read_as_grpc_reads_them(
    monkeypatch: pytest.MonkeyPatch, variable: str, exceptions: str, nobody: str
) -> None:
    """The truth is what gRPC does: it reaches the server, or the proxy that is not there."""
    monkeypatch.setenv("http_proxy", f"http://{nobody}")
    monkeypatch.setenv(variable, exceptions)
    with serving(Peer()) as peer, EmbedderClient(peer.url, retry=ONCE) as embedder:
        try:
            embedder.info()
            direct, told = True, embedder._proxy
        except ServerUnavailable as error:
            direct, told = False, str(error)
    assert direct == ("http_proxy" not in told)


@pytest.mark.parametrize("proxy", ["https://{}", "socks5://{}", "{}", ""])
def test_proxies_that_grpc_does_not_use(
    monkeypatch: pytest.MonkeyPatch, proxy: str, nobody: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.format(nobody))
    with serving(Peer()) as peer, EmbedderClient(peer.url, retry=ONCE) as embedder:
        embedder.info()
        assert embedder._proxy == ""


def test_without_a_proxy_none_is_named(nobody: str) -> None:
    with (
        pytest.raises(ServerUnavailable) as error,
        EmbedderClient(nobody, retry=ONCE) as embedder,
    ):
        embedder.info()
    assert "proxy" not in str(error.value)
