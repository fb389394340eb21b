"""What travels beside a call and how it gets there: tokens, interceptors, several addresses."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

import grpc
from kserve_peer import Peer, serving

from unified_embedding.client import (
    TLS,
    AsyncEmbedderClient,
    Connection,
    EmbedderClient,
    Retry,
    bearer,
)
from unified_embedding.errors import ServerError

METHODS = ("ModelConfig", "ModelConfig", "ServerMetadata", "ModelInfer")

Embed = Callable[..., None]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer(token="s3cret")) as running:
        yield running


def blocking(url: str, count: int = 1, **options: Any) -> None:
    with EmbedderClient(url, **options) as client:
        for _ in range(count):
            client.embed([b"x"])


def in_asyncio(url: str, count: int = 1, **options: Any) -> None:
    async def call() -> None:
        async with AsyncEmbedderClient(url, **options) as client:
            for _ in range(count):
                await client.embed([b"x"])

    asyncio.run(call())


@pytest.fixture(params=[blocking, in_asyncio], ids=["blocking", "asyncio"])
def embed(request: pytest.FixtureRequest) -> Embed:
    """Embed one picture `count` times, by a fresh client of either kind."""
    return request.param


def test_a_token_goes_with_every_call(peer: Peer, embed: Embed) -> None:
    embed(peer.url, metadata=bearer("s3cret\n"))
    assert [sent["authorization"] for sent in peer.metadata] == ["Bearer s3cret"] * len(METHODS)


def test_keys_may_be_written_as_in_http(peer: Peer, embed: Embed) -> None:
    embed(peer.url, metadata={"Authorization": "Bearer s3cret", "Trace-Bin": b"\0\xff"})
    assert peer.metadata[0]["trace-bin"] == b"\0\xff"


@pytest.mark.parametrize("metadata", [None, bearer("another")], ids=["none", "wrong"])
def test_a_refused_token_is_an_error_that_says_what_to_do(
    peer: Peer, embed: Embed, metadata: Any
) -> None:
    with pytest.raises(ServerError, match=r"UNAUTHENTICATED: no such token; give a token") as told:
        embed(peer.url, metadata=metadata)
    assert "another" not in str(told.value)


def test_a_function_is_asked_before_every_call(peer: Peer, embed: Embed) -> None:
    numbers = itertools.count()
    embed(peer.url, metadata=lambda: {**bearer("s3cret"), "number": str(next(numbers))})
    assert [sent["number"] for sent in peer.metadata] == ["0", "1", "2", "3"]


def test_the_asyncio_client_awaits_a_token(peer: Peer) -> None:
    async def fetched() -> dict[str, str]:
        await asyncio.sleep(0)
        return bearer("s3cret")

    in_asyncio(peer.url, metadata=fetched)
    assert len(peer.requests) == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"token": 1}, "metadata 'token' is int; give text"),
        ({"trace-bin": "text"}, "metadata 'trace-bin' is str; give text, or bytes"),
        ([("token", "x")], "metadata is list, not a mapping"),
    ],
)
def test_metadata_that_grpc_would_refuse(metadata: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        EmbedderClient(metadata=metadata)


@pytest.mark.parametrize("token", ["", "\n", "a\nb", "gehäuse"])
def test_what_is_no_token(token: str) -> None:
    with pytest.raises(ValueError, match="one line of printable ASCII"):
        bearer(token)


class Tracer(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Notes the methods that are called."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.seen.append(details.method.rpartition("/")[2])
        return continuation(details, request)


class AsyncTracer(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """The same for asyncio."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.seen.append(details.method.decode().rpartition("/")[2])
        return await continuation(details, request)


@pytest.mark.parametrize(("call", "kind"), [(blocking, Tracer), (in_asyncio, AsyncTracer)])
def test_interceptors_see_every_call_and_its_errors(peer: Peer, call: Embed, kind: Any) -> None:
    tracer = kind()
    call(peer.url, interceptors=[tracer], metadata=bearer("s3cret"))
    assert tuple(tracer.seen) == METHODS
    with pytest.raises(ServerError, match="UNAUTHENTICATED"):
        call(peer.url, interceptors=[tracer])


def test_all_addresses_of_a_name_are_used(embed: Embed) -> None:
    with serving(Peer()) as one, serving(Peer()) as other:
        # gRPC's way to write a name's addresses down.
        url = f"ipv4:{one.url},{other.url}"
        embed(url, count=200)
        shares = [len(peer.requests) for peer in (one, other)]
    assert sum(shares) == 200
    assert min(shares) > 20  # Even, but for what was sent before both had connected.


def test_one_of_several_servers_may_be_away(embed: Embed) -> None:
    with serving(Peer()) as one:
        with serving(Peer()) as other:
            gone = other.url
        embed(f"ipv4:{gone},{one.url}", count=20, retry=Retry(first=0.01))
    assert len(one.requests) == 20


def test_a_connection_from_the_environment(monkeypatch: pytest.MonkeyPatch, peer: Peer) -> None:
    assert Connection.from_environment() == Connection()
    monkeypatch.setenv("UNIFIED_EMBEDDING_TOKEN", "s3cret")
    found = Connection.from_environment()
    assert "s3cret" not in repr(found)
    blocking(peer.url, **found.options())
    monkeypatch.setenv("UNIFIED_EMBEDDING_TLS", "1")
    assert Connection.from_environment().tls == TLS()
    monkeypatch.setenv("UNIFIED_EMBEDDING_TLS", "0")
    monkeypatch.setenv("UNIFIED_EMBEDDING_TLS_CA", "ca.pem")
    assert Connection.from_environment().tls == TLS("ca.pem")
    monkeypatch.setenv("UNIFIED_EMBEDDING_TLS_KEY", "key.pem")
    with pytest.raises(ValueError, match="only one was given"):
        Connection.from_environment()
    monkeypatch.setenv("UNIFIED_EMBEDDING_TLS", "yes")
    with pytest.raises(ValueError, match="UNIFIED_EMBEDDING_TLS='yes' is neither 0 nor 1"):
        Connection.from_environment()
