"""`embed_iter` of both clients: streams of any length against a server the test decides."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from kserve_peer import ENGINE, POISON, VERSION, Mortal, Peer, mortal, serving, vector

from unified_embedding import Box
from unified_embedding.client import Answer, AsyncEmbedderClient, Embedded, EmbedderClient, Retry
from unified_embedding.client import _stream as stream
from unified_embedding.errors import (
    RequestAborted,
    RequestRejected,
    ServerUnavailable,
    VersionMismatch,
)
from unified_embedding.origin import Origin

ONCE = Retry(attempts=1)
HANG_GUARD_S = 60

Drain = Callable[..., list[Answer]]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as running:
        yield running


def blocking(peer: Peer | Mortal, images: Iterable[Any], into: Any = None, **named: Any) -> Any:
    options, found = named.pop("options", {}), [] if into is None else into
    with EmbedderClient(peer.url, **options) as client:
        for answer in client.embed_iter(images, **named):
            found.append(answer)
    return found


def in_asyncio(peer: Peer | Mortal, images: Iterable[Any], into: Any = None, **named: Any) -> Any:
    options, found = named.pop("options", {}), [] if into is None else into

    async def call() -> None:
        async with AsyncEmbedderClient(peer.url, **options) as client:
            async for answer in client.embed_iter(images, **named):
                found.append(answer)

    asyncio.run(call())
    return found


@pytest.fixture(params=[blocking, in_asyncio], ids=["blocking", "asyncio"])
def drain(request: pytest.FixtureRequest) -> Drain:
    """Every answer of a stream, by a fresh client of either kind."""
    return request.param


def test_answers_come_in_order_and_a_bad_picture_does_not_end_the_stream(
    peer: Peer, drain: Drain
) -> None:
    images = [f"{'bad' if row in (0, 7, 8) else 'good'} {row}".encode() for row in range(23)]
    answers = drain(peer, iter(images))
    assert len(answers) == len(images)
    for row, (image, answer) in enumerate(zip(images, answers, strict=True)):
        if image.startswith(b"bad"):
            assert isinstance(answer, RequestRejected)
            assert (answer.reason, answer.row) == ("not an image", row)
        else:
            assert isinstance(answer, Embedded)
            np.testing.assert_array_equal(answer.embedding, [vector(image)])
            assert answer.code is not None
            assert (answer.code.shape, answer.origin) == ((1, 2), Origin(VERSION, ENGINE))
    assert len(peer.requests[0].images) == 4


def test_nothing_is_sent_for_an_empty_stream(peer: Peer, drain: Drain) -> None:
    assert drain(peer, []) == []
    assert not peer.requests


def test_a_picture_that_kills_the_server_costs_itself_alone(drain: Drain, tmp_path: Any) -> None:
    with mortal(tmp_path) as peer:
        first, second, third = drain(peer, [b"good", POISON, b"fine"])
    assert isinstance(second, RequestAborted)
    assert second.rows == (1,)
    for answer, image in ((first, b"good"), (third, b"fine")):
        assert isinstance(answer, Embedded)
        np.testing.assert_array_equal(answer.embedding, [vector(image)])


def test_every_request_has_a_deadline_of_its_own(peer: Peer, drain: Drain) -> None:
    drain(peer, (b"x" for _ in range(6)), batch=2, options={"max_inflight": 1}, timeout=30)
    moments = [float(request.parameters["deadline"]) for request in peer.requests]
    assert len(moments) == 3
    assert moments == sorted(set(moments))


def test_reading_ahead_is_bounded(peer: Peer) -> None:
    read = itertools.count()
    with EmbedderClient(peer.url, max_inflight=2) as client:
        answers = client.embed_iter(str(next(read)).encode() for _ in itertools.count())
        for _ in range(40):
            next(answers)
        assert next(read) <= 40 + 2 * 4
    assert peer.most_at_once <= 2


def test_reading_ahead_is_bounded_in_asyncio(peer: Peer) -> None:
    async def scenario() -> None:
        read = itertools.count()
        async with AsyncEmbedderClient(peer.url, max_inflight=2) as client:
            answers = client.embed_iter(str(next(read)).encode() for _ in itertools.count())
            for _ in range(40):
                await anext(answers)
            # One more request is read than may be in flight.
            assert next(read) <= 40 + 3 * 4
            await answers.aclose()
            await client.embed([b"the places are free again"])

    asyncio.run(scenario())
    assert peer.most_at_once <= 2


def test_an_answer_does_not_wait_for_the_next_picture(peer: Peer) -> None:
    async def scenario() -> list[Answer]:
        answered = asyncio.Event()

        async def source() -> AsyncIterator[bytes]:
            yield b"first"
            await answered.wait()
            yield b"second"

        found = []
        async with AsyncEmbedderClient(peer.url) as client, asyncio.timeout(HANG_GUARD_S):
            async for answer in client.embed_iter(source(), batch=1):
                found.append(answer)
                answered.set()
        return found

    assert len(asyncio.run(scenario())) == 2


def test_a_server_that_fails_ends_the_stream_after_what_was_answered(
    peer: Peer, drain: Drain
) -> None:
    gone = (grpc.StatusCode.UNAVAILABLE, "gone")
    peer.respond = lambda number, request: gone if b"6" in request.images else None
    images = [str(row).encode() for row in range(12)]
    found: list[Answer] = []
    with pytest.raises(ServerUnavailable, match="gone"):
        drain(peer, images, found, batch=2, options={"retry": ONCE, "max_inflight": 1})
    assert len(found) == 6


def test_two_versions_never_mix_in_one_stream(peer: Peer, drain: Drain) -> None:
    peer.stamp = lambda number: f"{VERSION if number < 3 else 'new'} {ENGINE}"
    with pytest.raises(VersionMismatch, match="answered by embedder versions"):
        drain(peer, [b"x"] * 4, batch=1, options={"max_inflight": 1})


def test_each_picture_brings_its_crop(peer: Peer, drain: Drain) -> None:
    box = Box(0, 0, 0.5, 1)
    half, whole = drain(peer, [(b"a", box), b"b"], outputs=["embedding"])
    np.testing.assert_array_equal(half.embedding, [vector(b"a", str(box))])  # type: ignore[union-attr]
    np.testing.assert_array_equal(whole.embedding, [vector(b"b")])  # type: ignore[union-attr]


def test_large_pictures_travel_in_smaller_requests(
    peer: Peer, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "REQUEST_BYTES", 20)
    drain(peer, [b"a" * 15, b"b" * 4, b"c" * 50, b"d"], options={"max_inflight": 1})
    assert [[len(image) for image in request.images] for request in peer.requests] == [
        [15, 4],
        [50],
        [1],
    ]


def test_what_the_source_raises_reaches_the_caller(peer: Peer, drain: Drain) -> None:
    def source() -> Iterator[bytes]:
        yield b"x"
        raise OSError("planted")

    with pytest.raises(OSError, match="planted"):
        drain(peer, source())


@pytest.mark.parametrize(
    ("images", "named", "message"),
    [
        ([b"x", "y"], {}, "image 1 is str, not bytes"),
        (b"one picture", {}, "image 0 is int, not bytes"),
        ([], {"batch": 0}, "batch 0 is not a positive number"),
        ([], {"outputs": ["features"]}, r"outputs \['features'\] is not a selection"),
        ([], {"timeout": 0}, "timeout 0 is not a positive number"),
    ],
)
def test_mistakes_of_the_caller_are_named(
    peer: Peer, drain: Drain, images: Any, named: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        drain(peer, images, **named)
