"""Keys, limits, health, logs: what stands around the routes."""

import contextlib
import hashlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_service import HANG, Service, running, url
from kserve_peer import Peer, serving

from unified_embedding.api.app import Settings
from unified_embedding.api.bodies import BodyLimits
from unified_embedding.api.keys import Keys
from unified_embedding.errors import KeyFileError
from unified_embedding.image import DEFAULT_LIMITS

BEARER = {"Authorization": "Bearer open sesame"}


def line(name: str, key: str) -> str:
    return f"{name}  {hashlib.sha256(key.encode()).hexdigest()}\n"


def write(path: Path, text: str) -> None:
    """In one piece, with another time than before."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    os.utime(beside, ns=(time.time_ns(), path.stat().st_mtime_ns + 1 if path.exists() else 1))
    beside.replace(path)


def test_keys_are_asked_for_and_read_again(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unified_embedding.api.keys._LOOK_SECONDS", 0)
    path = tmp_path / "keys"
    write(path, f"# teams\n\n{line('search', 'open sesame')}")
    body = {"input": url(b"a")}
    with running(Settings([peer.url], keys=path)) as service:
        assert service.ask("/v1/embeddings", body, BEARER).status == 200
        assert service.log()[-1]["key"] == "search"
        for header in (
            {},
            {"Authorization": "Bearer open"},
            {"Authorization": "Basic open sesame"},
        ):
            refused = service.ask("/v1/embeddings", body, header)
            assert (refused.status, refused.error["type"]) == (401, "authentication_error")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert service.ask("/v1/models").status == 401
        assert service.ask("/v1/health/ready").status == 200
        write(path, line("ads", "another"))
        assert service.ask("/v1/embeddings", body, BEARER).status == 401
        assert service.ask("/v1/models", headers={"Authorization": "bearer another"}).status == 200
        # What is malformed, or gone, changes nothing.
        write(path, "ads\n")
        assert service.ask("/v1/models", headers={"Authorization": "Bearer another"}).status == 200
        path.unlink()
        assert service.ask("/v1/models", headers={"Authorization": "Bearer another"}).status == 200
    assert len(peer.requests) == 1


def test_a_file_of_keys_is_refused_by_the_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(KeyFileError, match="cannot be read"):
        Keys(path)
    path.write_text(line("a", "b") + "team plain-text-key\n")
    with pytest.raises(KeyFileError, match="line 2 is not NAME and the SHA-256") as refused:
        Keys(path)
    assert "plain" not in str(refused.value)  # It may be a key.


def test_a_body_is_refused_when_it_is_too_large(peer: Peer) -> None:
    with running(Settings([peer.url], bodies=BodyLimits(bytes=1000))) as service:
        assert service.embed(url(b"a" * 600)).status == 200
        # By its stated length, before a byte of it is read.
        with closing(http.client.HTTPConnection(*service.address, timeout=HANG)) as connection:
            connection.putrequest("POST", "/v1/embeddings")
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", "1001")
            connection.endheaders()
            answer = connection.getresponse()
            assert answer.status == 413
            assert json.loads(answer.read())["error"]["code"] == "body_too_large"
        # And by what comes, when no length is stated.
        with closing(http.client.HTTPConnection(*service.address, timeout=HANG)) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request(
                "POST", "/v1/embeddings", iter([b"x" * 400] * 4), headers, encode_chunked=True
            )
            assert connection.getresponse().status == 413
        assert service.api.bodies.held == 0


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("limits", [BodyLimits(stall=0.3), BodyLimits(whole=0.5)])
def test_an_upload_that_stands_still_or_drips_is_given_up(peer: Peer, limits: BodyLimits) -> None:
    """A byte now and then holds no connection: it is answered, and the connection ends."""
    with (
        running(Settings([peer.url], bodies=limits)) as service,
        socket.create_connection(service.address, HANG) as connection,
    ):
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n{")
        drips = limits.whole < HANG
        connection.settimeout(0.05 if drips else HANG)
        said, end = b"", time.monotonic() + HANG
        while time.monotonic() < end:
            try:
                piece = connection.recv(1000)
            except TimeoutError:
                with contextlib.suppress(OSError):
                    connection.sendall(b" ")
                continue
            except ConnectionResetError:  # By a byte that came after the end.
                break
            if not piece:
                break
            said += piece
        else:
            pytest.fail("the connection was not ended")
        assert said.startswith(b"HTTP/1.1 408")
        assert b"took too long to arrive" in said
        assert service.api.bodies.held == 0
        assert service.embed(url(b"a")).status == 200


def test_one_picture_may_be_as_large_as_a_picture_may_be(peer: Peer) -> None:
    """The body of one picture ends at the limit of pictures, which is below that of bodies."""
    with (
        running(Settings([peer.url])) as service,
        closing(http.client.HTTPConnection(*service.address, timeout=HANG)) as connection,
    ):
        connection.putrequest("POST", "/v1/embeddings")
        connection.putheader("Content-Type", "image/jpeg")
        connection.putheader("Content-Length", str(DEFAULT_LIMITS.max_bytes + 1))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert f"larger than {DEFAULT_LIMITS.max_bytes:,} bytes" in answer.read().decode()


def test_bodies_share_the_memory_set_aside_for_them(peer: Peer) -> None:
    with running(Settings([peer.url], bodies=BodyLimits(held=3000))) as service:
        with socket.create_connection(service.address, HANG) as slow:
            slow.sendall(HEAD + b"Content-Length: 5000\r\n\r\n" + b" " * 2000)
            until(lambda: service.api.bodies.held == 2000)
            full = service.embed(url(b"a" * 1000))
            assert (full.status, full.headers["retry-after"]) == (429, "1")
            assert service.embed(url(b"a")).status == 200
        until(lambda: service.api.bodies.held == 0)
        assert service.embed(url(b"a" * 1000)).status == 200


def test_pictures_in_work_are_bounded(peer: Peer) -> None:
    go = threading.Event()

    def respond(number: int, request: object) -> None:
        go.wait(HANG)

    peer.respond = respond
    with running(Settings([peer.url], pictures_in_work=4)) as service:
        answers: list[int] = []
        first = threading.Thread(
            target=lambda: answers.append(service.embed(*[url(b"a")] * 3).status)
        )
        first.start()
        until(lambda: service.api.gate.in_work == 3)
        refused = service.embed(url(b"a"), url(b"b"))
        assert (refused.status, refused.error["code"]) == (429, "overloaded")
        go.set()
        first.join(HANG)
        assert answers == [200]
        # A request of more than may be in work comes alone.
        assert service.embed(*[url(b"a")] * 9).status == 200
        assert service.api.gate.in_work == 0


def test_pages_of_the_listed_origins_may_call(peer: Peer) -> None:
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    with running(Settings([peer.url], origins=["https://shop.example"])) as service:
        good = service.ask("/v1/embeddings", headers={"Origin": "https://shop.example", **asks},
                           method="OPTIONS")  # fmt: skip
        assert good.headers["access-control-allow-origin"] == "https://shop.example"
        bad = service.ask("/v1/embeddings", headers={"Origin": "https://evil.example", **asks},
                          method="OPTIONS")  # fmt: skip
        assert "access-control-allow-origin" not in bad.headers
    with running(Settings([peer.url])) as service:
        answer = service.ask("/v1/models", headers={"Origin": "https://shop.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_every_request_has_an_id_a_line_and_a_count(service: Service) -> None:
    own = service.ask("/v1/embeddings", {"input": url(b"abc")}, {"X-Request-Id": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    other = service.ask("/v1/embeddings", {"input": url(b"bad")}, {"X-Request-Id": "no way\t"})
    assert len(other.headers["x-request-id"]) == 32
    first, second = service.log()
    assert {name: first[name] for name in ("request", "status", "pictures", "bytes", "code")} == {
        "request": "mine-1", "status": 200, "pictures": 1, "bytes": 3, "code": "",
    }  # fmt: skip
    assert (second["status"], second["code"]) == (400, "invalid_image")
    figures = service.ask("/metrics").said.decode()
    route = 'route="/v1/embeddings"'
    assert f'unified_embedding_api_requests_total{{key="",{route},status="200"}} 1.0' in figures
    assert 'unified_embedding_api_pictures_total{outcome="embedded"} 1.0' in figures
    assert 'unified_embedding_api_pictures_total{outcome="failed"} 1.0' in figures


def test_the_trace_goes_on_to_the_server() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen = []

    class Noting(Peer):
        def ModelInfer(self, message: Any, context: Any) -> Any:  # noqa: N802
            seen.append(dict(context.invocation_metadata()).get("traceparent"))
            return super().ModelInfer(message, context)

    with serving(Noting()) as peer, running(Settings([peer.url])) as service:
        service.ask("/v1/embeddings", {"input": url(b"a")}, {"traceparent": trace})
        service.embed(url(b"a"))
    assert seen == [trace, None]


def test_a_process_that_is_about_to_end_is_not_ready(service: Service) -> None:
    assert service.ask("/v1/health/ready").said == {"status": "ready"}
    service.api.draining = True
    assert service.ask("/v1/health/ready").status == 503
    assert service.embed(url(b"a")).status == 200


def test_readiness_embeds_a_picture_only_when_none_was(service: Service, peer: Peer) -> None:
    service.embed(url(b"a"))
    assert service.ask("/v1/health/ready").status == 200
    assert len(peer.requests) == 1
    (server,) = service.api.servers._servers
    server.embedded_at = float("-inf")
    for _ in range(3):
        assert service.ask("/v1/health/ready").status == 200
    assert len(peer.requests) == 2


def test_what_is_not_here_is_told_in_the_same_envelope(service: Service) -> None:
    assert service.ask("/v1/nothing").error["code"] == "not_found"
    wrong = service.ask("/v1/embeddings")
    assert (wrong.status, wrong.error["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_the_document_and_its_page_need_nothing_from_elsewhere(service: Service) -> None:
    document = service.ask("/openapi.json").said
    assert set(document["paths"]) == {
        "/v1/embeddings", "/v1/models", "/v1/models/{model}", "/v1/health/live",
        "/v1/health/ready",
    }  # fmt: skip
    page = service.ask("/docs")
    assert b"POST /v1/embeddings" in page.said
    assert b"http" not in page.said.replace(b"http-equiv", b"")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("status", [429, 503])
def test_the_sdk_repeats_what_it_may(root: Path, peer: Peer, status: int) -> None:
    """openai-python, with its own retries, against a server that is busy or away at first."""
    python = root / "out/api-clients/bin/python"
    if not python.exists():
        pytest.skip("`make api-clients` installs the SDKs")
    code = {429: grpc.StatusCode.CANCELLED, 503: grpc.StatusCode.UNAVAILABLE}[status]
    with running(Settings([peer.url])) as service:
        peer.respond = lambda number, request: (
            None if any(line["status"] == status for line in service.log()) else (code, "no")
        )
        script = (
            "import sys; from openai import OpenAI\n"
            "client = OpenAI(base_url=sys.argv[1], api_key='any')\n"
            "answer = client.embeddings.create(model='unified-embedder', input=sys.argv[2])\n"
            "print(len(answer.data[0].embedding))"
        )
        base = "http://{}:{}/v1".format(*service.address)
        done = subprocess.run(
            [python, "-c", script, base, url(b"a")], capture_output=True, text=True, check=False
        )
        assert done.stdout == "16\n", done.stderr
        assert [line["status"] for line in service.log()] == [status, 200]
