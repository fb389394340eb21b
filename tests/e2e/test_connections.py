"""Connections that keep the server waiting: good callers beside them get their answers."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is missing")

import triton_calls as triton

from unified_embedding.gallery import SHOT, Gallery

pytestmark = pytest.mark.e2e

IDLE, SLOW, HALF_CLOSED = 500, 200, 200
# What HTTP/2 begins with, and an empty SETTINGS frame: a gRPC connection that says no more.
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBI", 0, 0, 4, 0, 0)
REQUEST = (
    b"POST /v2/models/unified_embedding/infer HTTP/1.1\r\nHost: x\r\n"
    b"Inference-Header-Content-Length: 0\r\nContent-Length: 100000\r\n\r\n"
)


@pytest.fixture(scope="module")
def image(gallery: Gallery) -> bytes:
    return gallery.role(SHOT)[0].path.read_bytes()


def addresses(server: Any) -> list[tuple[str, int]]:
    """Where the server listens, gRPC and HTTP."""
    found = [urlsplit(f"//{server.grpc_url}"), urlsplit(server.http_url)]
    return [(one.hostname or "", one.port or 0) for one in found]


@contextlib.contextmanager
def connections(server: Any, count: int) -> Iterator[list[socket.socket]]:
    """`count` connections, gRPC and HTTP in turn."""
    places = addresses(server)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(places[number % 2], timeout=60))
            for number in range(count)
        ]


def says(number: int) -> bytes:
    return (HTTP2, REQUEST)[number % 2]


def answered(server: Any, image: bytes, truth: dict[str, np.ndarray]) -> None:
    """Eight callers at once, each bit as the idle server gives it."""
    answers = triton.at_once(8, lambda number: triton.embed(server.grpc_url, [image]))
    for answer in answers:
        assert not isinstance(answer, Exception), answer
        for name in ("embedding", "code"):
            assert np.array_equal(answer[name], truth[name])


def test_idle_connections_keep_nobody_out(server: Any, image: bytes) -> None:
    truth = triton.embed(server.grpc_url, [image])
    with connections(server, IDLE):
        answered(server, image, truth)
    answered(server, image, truth)


def test_slow_connections_keep_nobody_out(server: Any, image: bytes) -> None:
    """Each sends its request one byte after another, for as long as the good callers take."""
    truth = triton.embed(server.grpc_url, [image])
    done, sent = threading.Event(), [0]

    def trickle(held: list[socket.socket]) -> None:
        at = 0
        while not done.is_set():
            for number, connection in enumerate(held):
                # The server may have had enough of one.
                with contextlib.suppress(OSError):
                    sent[0] += connection.send(says(number)[at : at + 1] or b"x")
            at += 1

    with connections(server, SLOW) as held:
        sender = threading.Thread(target=trickle, args=(held,))
        sender.start()
        try:
            for _ in range(3):
                answered(server, image, truth)
        finally:
            done.set()
            sender.join()
    assert sent[0] > SLOW
    answered(server, image, truth)


def test_half_closed_connections_keep_nobody_out(server: Any, image: bytes) -> None:
    truth = triton.embed(server.grpc_url, [image])
    with connections(server, HALF_CLOSED) as held:
        for number, connection in enumerate(held):
            text = says(number)
            connection.sendall(text[: 1 + number % len(text)])
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        answered(server, image, truth)
    answered(server, image, truth)
