"""clients/status.py against a KServe v2 server whose health the test decides."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("typer", reason="the extra `client` is not installed")

from kserve_peer import ENGINE, VERSION, Peer, fail_first, serving
from PIL import Image

from unified_embedding.cli import status


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer(max_batch_size=16)) as running:
        yield running


def fails(peer: Peer, **options: Any) -> bool:
    """Whether the program ends with exit code 1; any other one is an error of the test."""
    try:
        status.main(url=peer.url, **options)
    except SystemExit as end:
        if end.code != 1:
            raise
        return True
    return False


def test_a_healthy_server(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert not fails(peer)
    said = capsys.readouterr().out
    for fact in (VERSION, ENGINE, "Triton 2.51.0", "D = 16", "2 bytes", "224 x 224", "up to 16"):
        assert fact in said
    # Pipeline order, whatever the server's.
    names = ["preprocess", "embedder", "binarizer", "unified_embedding"]
    table = said[said.index("mean milliseconds") :]
    assert sorted(names, key=table.index) == names


def test_json(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert not fails(peer, as_json=True, pictures=5)
    record = json.loads(capsys.readouterr().out)
    assert (record["up"], record["version"], record["engine"]) == (True, VERSION, ENGINE)
    assert (record["dim"], record["code_bytes"], record["max_batch_size"]) == (16, 2, 16)
    assert record["median_ms"] > 0
    # The peer counts 5 ms in all and 2 ms in the queue for each request.
    stage = record["stages"]["embedder"]
    assert (stage["requests"], stage["total_ms"], stage["queue_ms"]) == (5, 5.0, 2.0)
    assert len(peer.requests) == 1 + status.AT_ONCE + 5


def test_the_picture_it_sends_is_a_real_one(peer: Peer, tmp_path: Path) -> None:
    assert not fails(peer)
    with Image.open(io.BytesIO(peer.requests[0].images[0])) as image:
        image.load()
        assert (image.format, image.size, image.mode) == ("JPEG", (640, 480), "RGB")
    file = tmp_path / "mine.jpg"
    file.write_bytes(b"mine")
    assert not fails(peer, image=file)
    assert peer.requests[-1].images == (b"mine",)


def test_a_dead_model_process_is_down_although_it_reads_ready(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.respond = fail_first(99, grpc.StatusCode.INTERNAL)
    assert fails(peer)
    said = capsys.readouterr()
    assert "down:" in said.err
    assert "INTERNAL" in said.err
    assert said.out == ""


def test_one_dead_process_among_several_is_down(peer: Peer) -> None:
    # The first call met another one, and so does each but one of those at once.
    met = (grpc.StatusCode.INTERNAL, "as told")
    peer.respond = lambda number, request: met if number == status.AT_ONCE else None
    assert fails(peer, pictures=1)


def test_an_overloaded_server_is_down_at_once(peer: Peer) -> None:
    peer.respond = fail_first(99, grpc.StatusCode.UNAVAILABLE)
    assert fails(peer)
    assert len(peer.requests) == 1


def test_a_probe_asks_every_process_at_once_and_says_nothing(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not fails(peer, as_probe=True, pictures=12)
    assert len(peer.requests) == 12
    assert capsys.readouterr().out == ""


def test_a_probe_takes_an_overloaded_server_for_up_and_a_broken_one_for_down(peer: Peer) -> None:
    """Else the orchestrator would take away or kill the servers that everybody waits for."""
    peer.respond = fail_first(99, grpc.StatusCode.CANCELLED)
    assert not fails(peer, as_probe=True)
    assert fails(peer)
    # One dead process among those that are busy is seen all the same.
    busy, dead = (grpc.StatusCode.CANCELLED, "busy"), (grpc.StatusCode.INTERNAL, "dead")
    before = len(peer.requests)
    peer.respond = lambda number, request: dead if number == before + 4 else busy
    assert fails(peer, as_probe=True)


def test_a_code_that_is_not_the_sign_of_the_embedding_is_down(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    def flip(response: Any) -> None:
        code = response.raw_output_contents[0]
        response.raw_output_contents[0] = bytes([code[0] ^ 1]) + code[1:]

    peer.alter = flip
    assert fails(peer, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["up"] is False
    assert "not the packed sign" in record["error"]


def test_a_stopped_server_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Peer()) as peer:
        pass
    assert fails(peer, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["up"], record["url"]) == (False, peer.url)


def test_a_picture_that_cannot_be_read_is_named(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(peer, image=tmp_path / "none.jpg")
    assert "none.jpg" in capsys.readouterr().err
