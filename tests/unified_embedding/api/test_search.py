"""`POST /v1/search`: every kind of query against brute force over the index's codes."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_service import Service, running, url
from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, vector

pytest.importorskip("faiss", reason="the extra `search` is not installed")
pytest.importorskip("pyarrow", reason="the extra `search` is not installed")

from unified_embedding.api.app import Settings
from unified_embedding.index import Batch, CodeIndex, Origin

NAMES = [f"picture {number}" for number in range(30)]
IMAGES = [name.encode() for name in NAMES]


@pytest.fixture
def search(peer: Peer, tmp_path: Path) -> Iterator[Service]:
    metadata = {
        "source": [f"/srv/{name}.jpg" for name in NAMES],
        "metadata": [json.dumps({"price": number}) for number in range(30)],
    }
    CodeIndex.build(
        tmp_path / "index",
        [Batch(NAMES, codes(IMAGES), metadata)],
        Origin(VERSION, ENGINE),
        DIM,
    )
    with running(Settings([peer.url]), index=tmp_path / "index") as service:
        yield service


def nearest(code: np.ndarray) -> list[int]:
    """Distances of all rows, sorted."""
    return sorted(int(np.unpackbits(other ^ code).sum()) for other in codes(IMAGES))


@pytest.mark.parametrize("kind", ["image", "crop", "id", "code", "embedding"])
def test_every_kind_of_query_finds_what_brute_force_finds(search: Service, kind: str) -> None:
    query = {
        "image": {"image": url(b"picture 7")},
        "crop": {"image": {"image": url(b"picture 7"), "crop": [0, 0, 0.5, 1]}},
        "id": {"id": "picture 7"},
        "code": {
            "code": base64.b64encode(codes([b"picture 7"])[0].tobytes()).decode(),
            "version": VERSION,
        },
        "embedding": {"embedding": vector(b"picture 7").tolist(), "version": VERSION},
    }[kind]
    answer = search.ask("/v1/search", {**query, "k": 12})
    assert answer.status == 200
    code = codes([b"picture 7"], "0,0,0.5,1" if kind == "crop" else "")[0]
    hits = answer.said["data"]
    assert [hit["distance"] for hit in hits] == nearest(code)[:12]
    for hit in hits:
        row = NAMES.index(hit["id"])
        assert hit["distance"] == int(np.unpackbits(codes(IMAGES)[row] ^ code).sum())
        assert hit["metadata"]["price"] == row
    if kind != "crop":
        assert hits[0]["distance"] == 0
    assert answer.said["version"] == VERSION


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, None),
        ({"id": "picture 1", "image": "data:,"}, 400, None),
        ({"id": "nobody"}, 404, "id"),
        ({"id": "picture 1", "k": 0}, 400, "k"),
        ({"id": "picture 1", "k": 10_000}, 400, "k"),
        ({"id": "picture 1", "model": "unified-embedder@0000"}, 409, "version"),
        ({"code": "AAA="}, 400, "version"),
        ({"code": "AAA=", "version": "0000"}, 409, "version"),
        ({"code": "AAAA", "version": VERSION}, 400, "code"),
        ({"embedding": [1.0], "version": VERSION}, 400, "embedding"),
        ({"embedding": [1e300] * DIM, "version": VERSION}, 400, "embedding"),
        ({"image": "http://example.org/a.jpg"}, 400, "image"),
        ({"image": "data:image/png;base64,YmFk"}, 400, "image"),
    ],
)
def test_wrong_queries_are_refused_by_name(
    search: Service, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = search.ask("/v1/search", body)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert answer.headers["x-should-retry"] == "false"


def test_a_server_of_another_version_is_not_compared(search: Service, peer: Peer) -> None:
    peer.config_version, peer.stamp = "fedcba987654", lambda number: f"fedcba987654 {ENGINE}"
    answer = search.ask("/v1/search", {"image": url(b"picture 7")})
    assert (answer.status, answer.error["code"]) == (409, "version_mismatch")
    assert search.ask("/v1/search", {"id": "picture 7"}).status == 200


def test_without_an_index_there_is_no_such_route(service: Service) -> None:
    assert service.ask("/v1/search", {"id": "a"}).status == 404
    assert "/v1/search" not in service.ask("/openapi.json").said["paths"]
