"""The page's HTTP side: what it shows, to whom, and what it says to everything else."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import grpc
import pytest
from PIL import Image

pytest.importorskip("faiss", reason="the extra `search` is not installed")
pytest.importorskip("uvicorn", reason="the extra `search` is not installed")
import uvicorn
from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, serving, vectors

from unified_embedding.image import DEFAULT_LIMITS
from unified_embedding.index import Batch, CodeIndex, Origin, RecallMonitor, Settings
from unified_embedding.search.page_app import Patience, make_app
from unified_embedding.search.pictures import Pictures, roots_of

HANG = 60  # seconds; nothing here takes a tenth of it
SECRET = "a-folder-nobody-should-hear-of"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures below `shown`, and things beside them that must stay unseen."""
    place = tmp_path / SECRET
    (place / "shown").mkdir(parents=True)
    for name in ("shown/good.jpg", "outside.jpg"):
        Image.new("RGB", (40, 30), (200, 30, 30)).save(place / name)
    (place / "shown" / "link.jpg").symlink_to(place / "outside.jpg")
    (place / "shown" / "inner.jpg").symlink_to(place / "shown" / "good.jpg")
    (place / "shown" / "text.jpg").write_text("no picture")
    os.mkfifo(place / "shown" / "fifo.jpg")
    with (place / "shown" / "huge.jpg").open("wb") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes + 1)
    return place


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> CodeIndex:
    """A row for each of them; every row's own metadata claim to be good.jpg."""
    sources = {
        "good": folder / "shown" / "good.jpg",
        "inner": folder / "shown" / "inner.jpg",
        "outside": folder / "outside.jpg",
        "link": folder / "shown" / "link.jpg",
        "up": f"{folder}/shown/../outside.jpg",
        "fifo": folder / "shown" / "fifo.jpg",
        "huge": folder / "shown" / "huge.jpg",
        "text": folder / "shown" / "text.jpg",
        "folder": folder / "shown",
        "gone": folder / "shown" / "gone.jpg",
        "nul": "/a\0b.jpg",
        "zero": "/dev/zero",
        "s3": "s3://bucket/good.jpg",
    }
    said = {"source": str(sources["good"]), "name": "Chair", "odd": ["\ud800", float("nan")]}
    ids = list(sources)
    images = [name.encode() for name in ids]
    metadata = {
        "source": [str(place) for place in sources.values()],
        "metadata": [json.dumps(said)] * len(ids),
    }
    return CodeIndex.build(
        tmp_path / "index",
        [Batch(ids, codes(images), metadata, vectors(images))],
        Origin(VERSION, ENGINE),
        DIM,
        embeddings=True,
        roots=[str(folder / "shown")],
    )


@contextmanager
def page(index: CodeIndex, url: str, **options: Any) -> Iterator[tuple[str, int]]:
    app = make_app(index, url, Pictures(index.header.roots), **options)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join(HANG)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as peer:
        yield peer


@pytest.fixture
def address(index: CodeIndex, peer: Peer) -> Iterator[tuple[str, int]]:
    with page(index, peer.url) as address:
        yield address


def ask(
    address: tuple[str, int],
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """The status, and the answer: JSON, or bytes."""
    with closing(http.client.HTTPConnection(*address, timeout=HANG)) as connection:
        connection.request("GET" if body is None else "POST", path, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
        kind = answer.headers["content-type"]
        return answer.status, json.loads(data) if kind == "application/json" else data


def test_only_pictures_of_the_rows_own_source_below_the_roots_are_shown(
    address: tuple[str, int], index: CodeIndex
) -> None:
    shown = []
    for row in index.sample(100):
        status, answer = ask(address, f"/api/picture?id={row.id}")
        if status == 200:
            assert answer[:4] == b"RIFF"
            shown.append(row.id)
        else:
            assert status == 404
            assert SECRET not in json.dumps(answer)
    assert shown == ["good", "inner"]
    # The hits say so beforehand, all but what only decoding can tell.
    _, answer = ask(address, "/api/like?id=gone&k=100")
    [column] = answer["columns"]
    flagged = {hit["id"] for hit in column["hits"] if hit["picture"]}
    assert flagged == {"good", "inner", "text", "huge"}
    assert {hit["title"] for hit in column["hits"]} == {"Chair"}


@pytest.mark.parametrize(
    ("inputs", "roots"),
    [
        (["/data/photos"], ["/data/photos"]),
        (["photos", "photos"], ["{cwd}/photos"]),
        (["/data/a/**/*.webp", "/data/b[12]/x.jpg"], ["/data/a", "/data"]),
        (["/data/one.jpg"], ["/data/one.jpg"]),
        (["/data/t.parquet", "/data/t.tar", "/data/*.tar"], ["/data"]),
        (["s3://bucket/photos"], []),
    ],
)
def test_roots_are_where_the_inputs_lead(inputs: list[str], roots: list[str]) -> None:
    assert list(roots_of(inputs)) == [root.format(cwd=os.getcwd()) for root in roots]


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "image/jpg", "image/pjpeg", "application/octet-stream", "", "image/heic"]
)
def test_what_a_photo_is_shows_in_its_bytes(
    address: tuple[str, int], peer: Peer, kind: str
) -> None:
    status, answer = ask(address, "/api/search?k=2", b"good", {"Content-Type": kind})
    assert status == 200
    assert answer["columns"][0]["hits"][0]["id"] == "good"
    assert peer.requests[-1].images == (b"good",)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1:8080", "[::1]:80", "LOCALHOST.:1", "192.0.2.7", "photos.example"],
)
def test_our_names_are_answered(index: CodeIndex, host: str) -> None:
    names = {"host_names": ["Photos.example"], "bound": "192.0.2.7"}
    with page(index, "127.0.0.1:1", **names) as address:
        assert ask(address, "/", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "[::2]", "x" * 5000]
)
def test_other_names_are_refused_in_words(address: tuple[str, int], host: str) -> None:
    for path, body in (("/", None), ("/api/like?id=good", None), ("/api/search", b"good")):
        status, answer = ask(address, path, body, {"Host": host})
        assert status == 421
        assert "does not answer to the name" in answer["error"]
        assert "--host-name" in answer["error"]
        assert len(answer["error"]) < 250


def test_photos_are_taken_from_this_page_only(index: CodeIndex, peer: Peer) -> None:
    with page(index, peer.url, host_names=["photos.example"]) as address:
        ours = f"127.0.0.1:{address[1]}"
        for host, origin, status in (
            (ours, f"http://{ours}", 200),
            # Behind a proxy that ends TLS, with the browser's Host or its own.
            ("photos.example", "https://photos.example", 200),
            (ours, "https://photos.example", 200),
            (ours, "http://127.0.0.1:1", 403),
            (ours, "http://localhost:3000", 403),
            (ours, "https://evil.example", 403),
            (ours, "null", 403),
            (ours, f"file://{ours}", 403),
        ):
            headers = {"Host": host, "Origin": origin}
            got, answer = ask(address, "/api/search", b"good", headers)
            assert got == status, (origin, answer)
        assert len(peer.requests) == 3


@pytest.mark.parametrize("path", ["/api/search", "/api/like"])
@pytest.mark.parametrize("k", ["²", "٣", "0", "101", "-1", "1e1", "", "9" * 5000])
def test_a_k_that_is_no_number_is_refused_in_words(
    address: tuple[str, int], path: str, k: str
) -> None:
    body = b"good" if path == "/api/search" else None
    status, answer = ask(address, f"{path}?{urlencode({'k': k, 'id': 'good'})}", body)
    assert status == 400
    assert "k must be a number from 1 to 100" in answer["error"]
    assert len(answer["error"]) < 130


@pytest.mark.parametrize("path", ["/api/like", "/api/picture"])
@pytest.mark.parametrize("name", ["", "nothing", "../../etc/passwd", "%00", "%ff", "x" * 5000])
def test_unknown_rows_are_404_and_name_no_folder(
    address: tuple[str, int], path: str, name: str
) -> None:
    status, answer = ask(address, f"{path}?id={quote(name, safe='%')}")
    assert status == 404
    assert SECRET not in answer["error"]
    assert "index" not in answer["error"]
    assert len(answer["error"]) < 130


def test_unknown_paths_and_methods_answer_in_json(address: tuple[str, int]) -> None:
    assert ask(address, "/etc/passwd")[0] == 404
    assert "error" in ask(address, "/etc/passwd")[1]
    assert ask(address, "/api/status", b"")[0] == 405


def test_a_fault_of_ours_is_a_sentence_without_its_cause(
    index: CodeIndex, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(SECRET)

    with page(index, peer.url) as address:
        monkeypatch.setattr(CodeIndex, "search", broken)
        status, answer = ask(address, "/api/search", b"good")
        assert status == 500
        assert answer == {"error": "The page failed at this request; what happened is in its log."}
        monkeypatch.undo()
        assert ask(address, "/api/search", b"good")[0] == 200


@pytest.mark.parametrize(
    ("code", "status", "sentence"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 422, "cannot be read"),
        (grpc.StatusCode.CANCELLED, 503, "too much work"),
        (grpc.StatusCode.UNAVAILABLE, 503, "not answering"),
        (grpc.StatusCode.INTERNAL, 502, "failed"),
    ],
)
def test_each_failure_of_the_server_has_a_sentence_and_a_status(
    address: tuple[str, int], peer: Peer, code: grpc.StatusCode, status: int, sentence: str
) -> None:
    peer.respond = lambda number, request: (code, "as told")
    got, answer = ask(address, "/api/search", b"good")
    assert got == status
    assert sentence in answer["error"]
    peer.respond = lambda number, request: None
    assert ask(address, "/api/search", b"good")[0] == 200


def post_slowly(address: tuple[str, int], head: str, parts: Iterator[bytes]) -> bytes:
    """Send a request piece by piece until the page answers; all that it says until it hangs up."""
    with closing(socket.create_connection(address, timeout=HANG)) as connection:
        connection.sendall(f"POST /api/search HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())
        said = b""
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
        # What was sent after the page hung up resets the connection.
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                said += piece
        return said


def test_a_body_that_stops_or_drips_is_let_go(index: CodeIndex, peer: Peer) -> None:
    def dripping() -> Iterator[bytes]:
        while not done.is_set():
            yield b"x"
            done.wait(0.05)

    done = threading.Event()
    stopping = threading.Timer(HANG / 2, done.set)
    stopping.start()
    with page(index, peer.url, patience=Patience(stall=0.5, whole=HANG)) as address:
        said = post_slowly(address, "Content-Length: 1000\r\n", iter([b"half of it"]))
    assert said.startswith(b"HTTP/1.1 408")
    assert b"took too long to arrive" in said
    with page(index, peer.url, patience=Patience(stall=HANG, whole=0.5)) as address:
        post_slowly(address, "Content-Length: 1000000\r\n", dripping())
    assert not done.is_set()  # The page hung up, and did not wait for the rest.
    stopping.cancel()
    assert not peer.requests


def test_a_body_of_unknown_size_ends_at_the_limit(
    index: CodeIndex, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    sent = []

    def endless() -> Iterator[bytes]:
        for number in range(DEFAULT_LIMITS.max_bytes // 100_000):
            sent.append(number)
            yield chunk

    with page(index, peer.url) as address:
        post_slowly(address, "Transfer-Encoding: chunked\r\n", endless())
    assert len(sent) * (1 << 20) < 3 * DEFAULT_LIMITS.max_bytes
    assert not peer.requests


def test_a_form_is_refused_in_words(address: tuple[str, int]) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, answer = ask(address, "/api/search", b"--x", kind)
    assert status == 415
    assert "the photo itself as the body" in answer["error"]


def test_the_status_of_an_approximate_index_is_json_before_the_first_sample(
    index: CodeIndex, peer: Peer
) -> None:
    index.save(Settings(kind="hnsw"))
    index.monitor = RecallMonitor(every=1)
    with page(index, peer.url) as address:
        status, answer = ask(address, "/api/status")
        assert status == 200
        assert answer["server"]["up"]
        assert "recall" not in answer["index"]
        assert ask(address, "/api/search", b"good")[0] == 200
        index.monitor.flush()
        assert ask(address, "/api/status")[1]["index"]["recall"]["mean"] == 1.0
    index.monitor.close()


@pytest.fixture
def repeated(tmp_path: Path) -> CodeIndex:
    """22 different pictures, some of them several times, one 1,200 times."""
    images = [b"a"] * 3 + [b"b"] * 5 + [b"blank"] * 1200 + [str(n).encode() for n in range(20)]
    ids = [f"{image.decode()}-{row}" for row, image in enumerate(images)]
    said = [json.dumps({"n": row, "kind": image.decode()}) for row, image in enumerate(images)]
    batch = Batch(ids, codes(images), {"metadata": said}, vectors(images))
    origin = Origin(VERSION, ENGINE)
    return CodeIndex.build(tmp_path / "repeated", [batch], origin, DIM, embeddings=True)


def columns(answer: Any) -> dict[str, list[tuple[str, int]]]:
    return {
        column["order"]: [(hit["id"], hit["same_count"]) for hit in column["hits"]]
        for column in answer["columns"]
    }


def test_rows_of_equal_code_are_one_hit_and_a_row_is_not_its_own(
    repeated: CodeIndex, peer: Peer
) -> None:
    with page(repeated, peer.url) as address:
        status, found = ask(address, "/api/search?k=4&compare=1", b"b")
        assert status == 200
        _, like = ask(address, "/api/like?id=b-4&k=4&compare=1")
        _, blank = ask(address, "/api/like?id=blank-8&k=4")
    for hits in columns(found).values():
        assert hits[0] == ("b-3", 4)
        assert len(hits) == 4
    for hits in columns(like).values():
        assert hits[0] == ("b-3", 3)
    assert [hit["id"] for hit in like["columns"][1]["hits"][0]["same"]] == ["b-5", "b-6", "b-7"]
    [(first, more), *_] = columns(blank)["code"]
    assert (first, more) == ("blank-9", 998)  # Of the first 1,000 rows, itself left out.
    # Every different code is there once.
    codes_told = [hit["code"] for hit in found["columns"][1]["hits"]]
    assert len(set(codes_told)) == 4


def test_a_condition_narrows_every_column_and_a_bad_one_is_said(
    repeated: CodeIndex, peer: Peer
) -> None:
    with page(repeated, peer.url) as address:
        where = urlencode({"where": "n >= 1208 and kind != '3'", "k": 100, "compare": 1})
        _, found = ask(address, f"/api/search?{where}", b"b")
        for hits in columns(found).values():
            names = {name for name, _ in hits}
            assert names == {f"{n}-{1208 + n}" for n in range(20) if n != 3}
        status, told = ask(address, f"/api/like?id=b-4&{urlencode({'where': 'size < 3'})}")
        assert status == 400
        assert told["error"] == "no row has 'size'; there are kind, n."
        assert ask(address, "/api/status")[1]["index"]["names"] == ["kind", "n"]


def test_an_answer_says_where_chance_begins(repeated: CodeIndex, peer: Peer) -> None:
    with page(repeated, peer.url) as address:
        _, found = ask(address, "/api/search?k=4", b"b")
    assert found["chance"] == repeated.chance()
