"""Several servers as one, against servers that misbehave on demand."""

import threading

import grpc
import pytest
from _fleet import Fleet, Pace
from kserve_peer import VERSION, Peer, Request, codes, fail_first, serving

from unified_embedding.errors import ServerError, ServerUnavailable, VersionMismatch


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


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_fleet.PAUSE", 0.05)
    peer = Peer(respond=fail_first(3, grpc.StatusCode.UNAVAILABLE))
    with serving(peer):
        fleet = Fleet([peer.url], patience=30)
        assert fleet.embed_each([b"x"], ("code",)).rows == (0,)
        assert len(peer.requests) == 4
        fleet.close()
    fleet = Fleet(["127.0.0.1:1"], patience=0.2)
    with pytest.raises(ServerUnavailable):
        fleet.embed_each([b"x"], ("code",))
    fleet.close()


def test_other_failures_and_other_versions_are_not_tried_again() -> None:
    broken = Peer(respond=fail_first(9, grpc.StatusCode.INTERNAL))
    other = Peer(stamp=lambda _: "ffffffffffff engine", config_version="ffffffffffff")
    with serving(broken), serving(other):
        with pytest.raises(ServerError):
            Fleet([broken.url]).embed_each([b"x"], ("code",))
        assert len(broken.requests) == 1
        with pytest.raises(VersionMismatch):
            Fleet([other.url], VERSION).embed_each([b"x"], ("code",))
        with pytest.raises(VersionMismatch, match="different embedder versions"):
            Fleet([broken.url, other.url]).info()


def test_the_pace_spreads_pictures_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("_fleet.time.sleep", slept.append)
    monkeypatch.setattr("_fleet.time.monotonic", lambda: 100.0)
    pace = Pace(8)
    for _ in range(3):
        pace.wait(4)
    assert slept == [0.0, 0.5, 1.0]
    Pace(0).wait(1000)
    assert len(slept) == 3
