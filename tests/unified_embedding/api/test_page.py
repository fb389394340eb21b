"""The search page before the API's routes: what it shows, and to whom."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

pytest.importorskip("faiss", reason="the extra `search` is not installed")
from api_service import Service, running, url
from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, vectors

from unified_embedding.api.app import Api, Settings
from unified_embedding.api.guard import Hosts
from unified_embedding.errors import SettingsError
from unified_embedding.image import DEFAULT_LIMITS
from unified_embedding.index import Batch, CodeIndex, Origin
from unified_embedding.search.pictures import roots_of

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
def paging(index: CodeIndex, url: str, *names: str, **options: Any) -> Iterator[Service]:
    hosts = Hosts(options.pop("bound", "127.0.0.1"), names)
    with running(Settings([url], page=True, hosts=hosts, **options), index=index) as service:
        yield service


@pytest.fixture
def page(index: CodeIndex, peer: Peer) -> Iterator[Service]:
    with paging(index, peer.url) as service:
        yield service


def test_only_pictures_of_the_rows_own_source_below_the_roots_are_shown(
    page: Service, index: CodeIndex
) -> None:
    shown = []
    for row in index.sample(100):
        answer = page.ask(f"/picture?id={row.id}")
        if answer.status == 200:
            assert answer.said[:4] == b"RIFF"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            shown.append(row.id)
        else:
            assert answer.status == 404
            assert SECRET not in json.dumps(answer.said)
    assert shown == ["good", "inner"]
    # The hits say so beforehand, all but what only decoding can tell.
    hits = page.ask("/v1/search", {"id": "gone", "k": 100}).said["data"]
    flagged = {hit["id"]: hit["picture"] for hit in hits if "picture" in hit}
    assert set(flagged) == {"good", "inner", "text", "huge"}
    assert page.ask(flagged["good"]).status == 200
    assert {hit["title"] for hit in hits} == {"Chair"}
    examples = page.ask("/examples").said["data"]
    assert {one["title"] for one in examples} == {"Chair"}


def test_without_a_page_no_picture_is_served(index: CodeIndex, peer: Peer) -> None:
    with running(Settings([peer.url]), index=index) as service:
        assert {service.ask(path).status for path in ("/", "/picture?id=good", "/examples")} == {
            404
        }
        hits = service.ask("/v1/search", {"id": "gone", "k": 100}).said["data"]
        assert not [hit for hit in hits if "picture" in hit]


def test_roots_narrow_what_is_shown(index: CodeIndex, peer: Peer, tmp_path: Path) -> None:
    with paging(index, peer.url, roots=[tmp_path / "nothing"]) as service:
        assert service.ask("/picture?id=good").status == 404


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


@pytest.mark.parametrize("name", ["", "nothing", "../../etc/passwd", "%00", "%ff", "x" * 5000])
def test_unknown_rows_are_404_and_name_no_folder(page: Service, name: str) -> None:
    answer = page.ask(f"/picture?id={quote(name, safe='%')}")
    assert answer.status == 404
    assert SECRET not in answer.error["message"]
    assert len(answer.error["message"]) < 130


def test_its_files_come_from_here_and_may_load_nothing_else(page: Service) -> None:
    for path, kind in (("/", "text/html"), ("/app.js", "text/javascript"),
                       ("/style.css", "text/css"), ("/icon.svg", "image/svg+xml")):  # fmt: skip
        answer = page.ask(path)
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        outside = b"http" in answer.said.replace(b"http://www.w3.org/", b"")
        assert not outside or path == "/app.js"
    assert page.ask("/v1/index").headers["x-content-type-options"] == "nosniff"


def test_a_page_needs_an_index_and_excludes_keys(tmp_path: Path, index: CodeIndex) -> None:
    with pytest.raises(SettingsError, match="name its folder by --index"):
        Api(Settings(["127.0.0.1:1"], page=True))
    (tmp_path / "keys").write_text("")
    with pytest.raises(SettingsError, match="the page has no login"):
        Api(Settings(["127.0.0.1:1"], page=True, keys=tmp_path / "keys"), index=index)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1:8080", "[::1]:80", "LOCALHOST.:1", "192.0.2.7", "photos.example"],
)
def test_our_names_are_answered(index: CodeIndex, host: str) -> None:
    with paging(index, "127.0.0.1:1", "Photos.example", bound="192.0.2.7") as service:
        assert service.ask("/", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "[::2]", "x" * 5000]
)
def test_other_names_are_refused_in_words(page: Service, host: str) -> None:
    for path, body in (("/", None), ("/v1/index", None), ("/v1/search", {"id": "good"}),
                       ("/v1/embeddings", {"input": url(b"good")})):  # fmt: skip
        answer = page.ask(path, body, {"Host": host})
        assert (answer.status, answer.error["code"]) == (421, "unknown_host")
        assert "--host-name" in answer.error["message"]
        assert len(answer.error["message"]) < 250
    assert page.log()[-1]["code"] == "unknown_host"
    # Who watches the process asks by its address.
    assert page.ask("/v1/health/live", headers={"Host": host}).status == 200


def test_only_our_own_pages_and_those_of_the_listed_origins_may_send(
    index: CodeIndex, peer: Peer
) -> None:
    origins = ["https://shop.example"]
    with paging(index, peer.url, "photos.example", origins=origins) as service:
        ours = f"127.0.0.1:{service.address[1]}"
        for host, origin, status in (
            (ours, f"http://{ours}", 200),
            # Behind a proxy that ends TLS, with the browser's Host or its own.
            ("photos.example", "https://photos.example", 200),
            (ours, "https://photos.example", 200),
            (ours, "https://shop.example", 200),
            (ours, "http://127.0.0.1:1", 403),
            (ours, "http://localhost:3000", 403),
            (ours, "https://evil.example", 403),
            (ours, "null", 403),
            (ours, f"file://{ours}", 403),
        ):
            headers = {"Host": host, "Origin": origin, "Content-Type": "image/jpeg"}
            answer = service.ask("/v1/embeddings", b"good", headers)
            assert answer.status == status, (origin, answer)
        assert len(peer.requests) == 4
