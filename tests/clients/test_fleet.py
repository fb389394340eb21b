"""Several servers as one, against servers that misbehave on demand."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import grpc
import pytest
from kserve_peer import (
    DEAD_STUB,
    VERSION,
    Peer,
    Request,
    codes,
    fail_first,
    mortal,
    serving,
    vectors,
)

from unified_embedding.corpus.fleet import PAUSE, Fleet, RateLimiter
from unified_embedding.errors import ClientError, RequestAborted, ServerError, VersionMismatch


def test_requests_go_to_the_server_that_is_free() -> None:
    arrived, released = threading.Event(), threading.Event()

    def hold(number: int, request: Request) -> None:
        arrived.set()
        released.wait(60)

    fast, slow = Peer(), Peer(respond=hold)
    with serving(fast), serving(slow):
        fleet = Fleet([slow.url, fast.url])
        first = threading.Thread(target=fleet.embed_each, args=([b"x"], ("code",)))
        first.start()
        assert arrived.wait(60)
        for _ in range(11):
            fleet.embed_each([b"y"], ("code",))
        released.set()
        first.join()
        fleet.close()
    assert (len(slow.requests), len(fast.requests)) == (1, 11)


def test_idle_servers_take_turns() -> None:
    one, two = Peer(), Peer()
    with serving(one), serving(two):
        fleet = Fleet([one.url, two.url])
        for _ in range(6):
            fleet.embed_each([b"x"], ("code",))
        fleet.close()
    assert (len(one.requests), len(two.requests)) == (3, 3)


def test_a_lost_server_is_left_alone_and_its_request_goes_to_another() -> None:
    good = Peer()
    with serving(good):
        fleet = Fleet(["127.0.0.1:1", good.url])
        assert fleet.info().version == VERSION
        for number in range(5):
            answer = fleet.embed_each([b"%d" % number], ("code",))
            assert answer.embedded.code is not None
            assert answer.embedded.code.tolist() == codes([b"%d" % number]).tolist()
        fleet.close()
    assert len(good.requests) == 5


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


PASSING = [
    (grpc.StatusCode.UNAVAILABLE, "Server is stopping"),
    (grpc.StatusCode.CANCELLED, "overloaded, the request was dropped"),
    (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'x' has no available versions"),
]


@pytest.mark.parametrize("failure", PASSING, ids=["stopping", "overloaded", "unloaded"])
def test_patience_covers_what_passes(failure: tuple[grpc.StatusCode, str]) -> None:
    peer, clock = Peer(respond=lambda number, request: failure if number <= 9 else None), Clock()
    with serving(peer), closing(fleet_of(clock, peer.url, patience=30)) as fleet:
        assert fleet.embed_each([b"x"], ("code",)).rows == (0,)
    assert len(peer.requests) == 10
    assert clock.time == pytest.approx(9 * PAUSE)


@pytest.mark.parametrize("failure", PASSING, ids=["stopping", "overloaded", "unloaded"])
def test_patience_ends(failure: tuple[grpc.StatusCode, str]) -> None:
    peer, clock = Peer(respond=lambda number, request: failure), Clock()
    with (
        serving(peer),
        closing(fleet_of(clock, peer.url, patience=30)) as fleet,
        pytest.raises(ClientError, match=failure[1]),
    ):
        fleet.embed_each([b"x"], ("code",))
    assert 30 < clock.time <= 30 + PAUSE


def test_patience_begins_anew_with_an_answer() -> None:
    """A picture that takes the server away twice may take longer than one patience."""
    away = (grpc.StatusCode.UNAVAILABLE, "Server is stopping")
    answered = {10, 20, 30}
    peer = Peer(
        respond=lambda number, request: None if number in answered else away, max_batch_size=1
    )
    clock = Clock()
    with serving(peer), closing(fleet_of(clock, peer.url, patience=9.5 * PAUSE)) as fleet:
        answer = fleet.embed_each([b"a", b"b", b"c"], ("code",))
    assert answer.embedded.code is not None
    assert answer.embedded.code.tolist() == codes([b"a", b"b", b"c"]).tolist()


def test_what_was_answered_is_not_sent_again() -> None:
    lost = (grpc.StatusCode.UNAVAILABLE, "Server is stopping")
    peer = Peer(
        max_batch_size=2,
        respond=lambda number, request: lost if b"c" in request.images and number <= 5 else None,
    )
    images = [b"a", b"b", b"c", b"bad", b"e"]
    with serving(peer), closing(fleet_of(Clock(), peer.url, patience=300)) as fleet:
        answer = fleet.embed_each(images, ("embedding", "code"))
    assert answer.rows == (0, 1, 2, 4)
    assert answer.embedded.code is not None
    assert answer.embedded.embedding is not None
    good = [images[row] for row in answer.rows]
    assert answer.embedded.code.tolist() == codes(good).tolist()
    assert answer.embedded.embedding.tolist() == vectors(good).tolist()
    assert {row: str(error) for row, error in answer.errors.items()} == {3: "image 3: not an image"}
    assert sum(b"a" in request.images for request in peer.requests) == 1


def fleet_of(clock: Clock, *urls: str, patience: float) -> Fleet:
    return Fleet(urls, patience=patience, now=clock.now, sleep=clock.sleep)


@pytest.mark.parametrize("linger", [0, 0.5], ids=["dies", "lingers"])
@pytest.mark.parametrize("servers", [1, 2])
def test_poison_pictures_cost_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: int, linger: float
) -> None:
    # Longer than a server lingers, and no longer than a test should wait.
    monkeypatch.setattr("unified_embedding.client._retry.ILL_S", 4 * linger)
    lists = [[f"{caller} {row}".encode() for row in range(4)] for caller in range(8)]
    lists[2][1], lists[2][2], lists[5][3] = b"poison a", b"poison b", b"poison c"
    with ExitStack() as stack:
        peers = []
        for number in range(servers):
            (tmp_path / str(number)).mkdir()
            peers.append(stack.enter_context(mortal(tmp_path / str(number), linger)))
        fleet = stack.enter_context(closing(Fleet([peer.url for peer in peers], patience=300)))
        with ThreadPoolExecutor(4) as callers:
            answers = list(callers.map(lambda images: fleet.embed_each(images, ("code",)), lists))
        received = {
            name: sum(len(peer.received(name)) for peer in peers)
            for name in (b"poison a", b"poison b", b"poison c")
        }
        deaths = sum(peer.deaths for peer in peers)
    lost = {(caller, row) for caller, answer in enumerate(answers) for row in answer.errors}
    assert lost == {(2, 1), (2, 2), (5, 3)}
    for images, answer in zip(lists, answers, strict=True):
        assert {type(error) for error in answer.errors.values()} <= {RequestAborted}
        assert answer.embedded.code is not None
        assert answer.embedded.code.tolist() == codes([images[r] for r in answer.rows]).tolist()
    assert deaths <= 6
    # One that is sent to an ill server with others ends it no sooner, and is not blamed for it.
    assert linger or max(received.values()) <= 2


def test_a_dead_model_process_blames_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton answers so again and again until somebody starts the server anew."""
    monkeypatch.setattr("unified_embedding.client._retry.ILL_S", 0)
    peer = Peer(respond=lambda number, request: DEAD_STUB if number <= 9 else None)
    with serving(peer), closing(fleet_of(Clock(), peer.url, patience=300)) as fleet:
        answer = fleet.embed_each([b"a", b"b"], ("code",))
    assert (answer.rows, dict(answer.errors)) == ((0, 1), {})


def test_other_failures_are_not_tried_again_and_versions_not_mixed() -> None:
    broken = Peer(respond=fail_first(9, grpc.StatusCode.INTERNAL))
    other = Peer(stamp=lambda _: "ffffffffffff engine", config_version="ffffffffffff")
    with serving(broken), serving(other):
        with pytest.raises(ServerError):
            Fleet([broken.url]).embed_each([b"x"], ("code",))
        assert len(broken.requests) == 1
        with pytest.raises(VersionMismatch, match="different embedder versions"):
            Fleet([broken.url, other.url]).info()


def test_the_rate_limiter_spreads_pictures_over_time() -> None:
    clock = Clock()
    limiter = RateLimiter(8, clock.now, clock.sleep)
    for _ in range(3):
        limiter.wait(4)
    assert clock.slept == [0.0, 0.5, 0.5]
    RateLimiter(0, clock.now, clock.sleep).wait(1000)
    assert clock.time == 1.0
