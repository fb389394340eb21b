"""`POST /v1/search`: every kind of query against brute force over the index's codes."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_service import Service, running, url
from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, serving, vector, vectors

pytest.importorskip("faiss", reason="the extra `search` is not installed")
pytest.importorskip("pyarrow", reason="the extra `search` is not installed")

from unified_embedding.api.app import Settings
from unified_embedding.index import Batch, CodeIndex, Origin, RecallMonitor
from unified_embedding.index import Settings as IndexSettings
from unified_embedding.index.following import activate

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
    # A row is no hit of its own.
    own = kind == "id"
    assert [hit["distance"] for hit in hits] == nearest(code)[own : 12 + own]
    assert "picture 7" not in [hit["id"] for hit in hits] or not own
    assert base64.b64decode(answer.said["query"]["code"]) == code.tobytes()
    for hit in hits:
        row = NAMES.index(hit["id"])
        assert hit["distance"] == int(np.unpackbits(codes(IMAGES)[row] ^ code).sum())
        assert hit["metadata"]["price"] == row
    if kind not in ("crop", "id"):
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


def test_every_order_finds_what_brute_force_finds(many: Service) -> None:
    query = vector(b"12")
    right = np.array([int(np.unpackbits(code ^ codes([b"12"])[0]).sum()) for code in codes(MANY)])
    unit = vectors(MANY) / np.linalg.norm(vectors(MANY), axis=1, keepdims=True)
    cosine = unit @ (query / np.linalg.norm(query))
    asked = {"embedding": query.tolist(), "version": VERSION, "k": 5}
    by_code = many.ask("/v1/search", asked).said["data"]
    assert [hit["distance"] for hit in by_code] == sorted(right)[:5]
    by_float = many.ask("/v1/search", {**asked, "order": "float"}).said["data"]
    assert [hit["score"] for hit in by_float] == pytest.approx(sorted(cosine)[::-1][:5], abs=1e-3)
    again = many.ask("/v1/search", {**asked, "order": "asymmetric"}).said["data"]
    signs = np.where(vectors(MANY) > 0, 1, -1) / np.sqrt(DIM)
    scores = sorted(signs @ (query / np.linalg.norm(query)))[::-1][:5]
    assert [hit["score"] for hit in again] == pytest.approx(scores, abs=1e-5)
    # What /v1/embeddings answered is taken as it came; a picture and a row can be ordered so too.
    text = base64.b64encode(query.astype("<f4").tobytes()).decode()
    for same in ({"embedding": text, "version": VERSION}, {"image": url(b"12")}):
        told = many.ask("/v1/search", {**same, "k": 5, "order": "float"}).said["data"]
        assert [hit["id"] for hit in told] == [hit["id"] for hit in by_float]
    row = by_float[0]["id"]
    like = many.ask("/v1/search", {"id": row, "k": 4, "order": "float"}).said["data"]
    assert [hit["id"] for hit in like] == [hit["id"] for hit in by_float[1:]]


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"order": "float"}, "order", "this index stores no embeddings"),
        ({"order": "asymmetric", "embedding": None, "id": "picture 1", "version": None},
         "order", "needs the query's embedding, and this index stores none"),
        ({"order": "nearest"}, "order", "nearest"),
        ({"where": "price <"}, "where", "is no condition"),
        ({"where": "size < 3"}, "where", "no row has 'size'; there are price, source"),
        ({"where": "(" * 5000}, "where", ""),
        ({"embedding": "AAAA=="}, "embedding", ""),
        ({"embedding": "AAAAAAA="}, "embedding", "4 bytes a number"),
        ({"embedding": base64.b64encode(b"\0\0\xc0\x7f" * DIM).decode()}, "embedding", "float32"),
        ({"group": 1}, "group", "bool"),
    ],
)  # fmt: skip
def test_what_an_index_cannot_give_is_told(
    search: Service, body: dict[str, Any], param: str, told: str
) -> None:
    asked = {"embedding": vector(b"picture 7").tolist(), "version": VERSION, **body}
    answer = search.ask("/v1/search", asked)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert told in answer.error["message"]
    assert len(answer.error["message"]) < 300


MANY = [b"a"] * 3 + [b"b"] * 5 + [b"blank"] * 1200 + [str(n).encode() for n in range(20)]
"""22 different pictures, some of them several times, one 1,200 times."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    ids = [f"{image.decode()}-{row}" for row, image in enumerate(MANY)]
    said = [json.dumps({"n": row, "kind": image.decode()}) for row, image in enumerate(MANY)]
    batch = Batch(ids, codes(MANY), {"metadata": said}, vectors(MANY))
    folder = tmp_path_factory.mktemp("many") / "index"
    CodeIndex.build(folder, [batch], Origin(VERSION, ENGINE), DIM, embeddings=True)
    with serving(Peer()) as peer, running(Settings([peer.url]), index=folder) as service:
        yield service


@pytest.mark.parametrize("order", ["code", "asymmetric", "float"])
def test_rows_of_equal_code_are_one_hit_and_a_row_is_not_its_own(many: Service, order: str) -> None:
    asked = {"order": order, "k": 4, "group": True}
    found = many.ask("/v1/search", {"image": url(b"b"), **asked}).said["data"]
    assert len(found) == len({hit["code"] for hit in found}) == 4
    assert (found[0]["id"], found[0]["same_count"]) == ("b-3", 4)
    assert base64.b64decode(found[0]["code"]) == codes([b"b"])[0].tobytes()
    like = many.ask("/v1/search", {"id": "b-4", **asked}).said
    assert (like["data"][0]["id"], like["data"][0]["same_count"]) == ("b-3", 3)
    assert [hit["id"] for hit in like["data"][0]["same"]] == ["b-5", "b-6", "b-7"]
    assert (like["query"]["id"], like["query"]["metadata"]) == ("b-4", {"n": 4, "kind": "b"})
    assert like["query"]["code"] == found[0]["code"]
    blank = many.ask("/v1/search", {"id": "blank-8", **asked}).said["data"][0]
    # Of the first 1,000 rows, itself left out; 24 of them are listed.
    assert (blank["id"], blank["same_count"], len(blank["same"])) == ("blank-9", 998, 24)


def test_a_condition_narrows_every_order(many: Service) -> None:
    for order in ("code", "asymmetric", "float"):
        where = "n >= 1208 and kind != '3'"
        asked = {"image": url(b"b"), "k": 100, "where": where, "order": order, "group": True}
        hits = many.ask("/v1/search", asked).said["data"]
        assert {hit["id"] for hit in hits} == {f"{n}-{1208 + n}" for n in range(20) if n != 3}


def test_the_index_tells_what_it_holds(many: Service, search: Service) -> None:
    about = many.ask("/v1/index").said
    assert {name: about[name] for name in ("rows", "kind", "names", "embeddings", "version")} == {
        "rows": 1228, "kind": "flat", "names": ["kind", "n"], "embeddings": True,
        "version": VERSION,
    }  # fmt: skip
    assert many.ask("/v1/search", {"id": "b-4"}).said["chance"] == about["chance"]
    assert search.ask("/v1/index").said["embeddings"] is False


def test_the_recall_of_an_approximate_index_is_watched(peer: Peer, tmp_path: Path) -> None:
    batch = Batch(NAMES, codes(IMAGES))
    index = CodeIndex.build(tmp_path / "index", [batch], Origin(VERSION, ENGINE), DIM)
    index.save(IndexSettings(kind="hnsw"))
    index.monitor = RecallMonitor(every=1)
    with running(Settings([peer.url]), index=index) as service:
        assert "recall" not in service.ask("/v1/index").said
        assert service.ask("/v1/search", {"image": url(b"picture 7")}).status == 200
        index.monitor.flush()
        assert service.ask("/v1/index").said["recall"]["mean"] == 1.0


def test_another_engine_is_measured_and_told(peer: Peer, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode())
    stored = codes(IMAGES)
    stored[:, 0] ^= 0b1000_0000  # one bit of each
    batch = Batch(NAMES, stored, {"source": [str(tmp_path / name) for name in NAMES]})
    home = Origin(VERSION, "home-engine")
    folder = tmp_path / "index"
    CodeIndex.build(folder, [batch], home, DIM, roots=[str(tmp_path)])
    with running(Settings([peer.url]), index=folder) as service:
        share = f"{1 / DIM:.1%} of the bits differ; near ties may change order"
        sent = {"embedding": vector(b"picture 7").tolist(), "version": VERSION, "k": 1}
        for query in ({"image": url(b"picture 7"), "k": 1}, {**sent, "engine": ENGINE}):
            told = service.ask("/v1/search", query).said
            assert told["warning"] == (
                f"the query was computed by engine {ENGINE}, the index by home-engine: {share}"
            )
            assert told["engine"] == "home-engine"
        # An engine that is not served cannot be measured, and none is warned of without need.
        told = service.ask("/v1/search", {**sent, "engine": "x" * 200}).said["warning"]
        assert "differ" not in told
        assert len(told) < 250
        assert "warning" not in service.ask("/v1/search", sent).said
        assert "warning" not in service.ask("/v1/search", {"id": "picture 7"}).said
    measured = [request for request in peer.requests if len(request.images) > 1]
    assert sum(len(request.images) for request in measured) == 16


GREEN = "abcabcabcabc"


@pytest.fixture
def green() -> Iterator[Peer]:
    """A server of another version."""
    with serving(Peer(config_version=GREEN, stamp=lambda number: f"{GREEN} {ENGINE}")) as found:
        yield found


def test_the_active_index_is_searched_through_the_embedder_of_its_version(
    peer: Peer, green: Peer, tmp_path: Path
) -> None:
    # Rows of green are named and placed otherwise, so that its answers tell themselves apart.
    for name, version, names in (("blue", VERSION, NAMES), ("green", GREEN, NAMES[::-1])):
        batch = Batch(names, codes(IMAGES))
        CodeIndex.build(tmp_path / name, [batch], Origin(version, ENGINE), DIM)
    activate(tmp_path / "blue")
    with running(Settings([green.url, peer.url]), index=tmp_path) as service:
        for folder, version, nearest in (
            ("blue", VERSION, "picture 7"),
            ("green", GREEN, "picture 22"),
            ("blue", VERSION, "picture 7"),
        ):
            activate(tmp_path / folder)
            embedders = {VERSION: peer, GREEN: green}
            before = {name: len(one.requests) for name, one in embedders.items()}
            answer = service.ask("/v1/search", {"image": url(b"picture 7"), "k": 1})
            assert answer.said["version"] == version
            assert answer.said["data"][0]["id"] == nearest
            assert service.ask("/v1/index").said["version"] == version
            # Whoever asks for vectors without saying of which version gets those.
            assert service.embed(url(b"picture 7")).said["version"] == version
            asked = {n: len(one.requests) - before[n] for n, one in embedders.items()}
            assert asked == {version: 2, ({VERSION, GREEN} - {version}).pop(): 0}
            body = {"code": "AAA=", "version": ({VERSION, GREEN} - {version}).pop()}
            assert service.ask("/v1/search", body).status == 409


def test_an_embedder_that_declares_the_index_s_version_may_search_it(
    green: Peer, peer: Peer, tmp_path: Path
) -> None:
    batch = Batch(NAMES, codes(IMAGES))
    CodeIndex.build(tmp_path / "blue", [batch], Origin(VERSION, ENGINE), DIM)
    given = {"code": base64.b64encode(codes([b"picture 7"])[0].tobytes()).decode()}
    queries = ({"image": url(b"picture 7")}, {**given, "version": GREEN})
    for declared, status in (("", 409), (f"111111111111 {VERSION}", 200)):
        green.config_compatible = declared
        with running(Settings([green.url]), index=tmp_path / "blue") as service:
            for query in queries:
                answer = service.ask("/v1/search", query)
                assert answer.status == status
                if status == 200:
                    assert answer.said["data"][0]["id"] == "picture 7"
            # Stored vectors are another matter: only that very version will do.
            pinned = service.embed(url(b"picture 7"), model=f"unified-embedder@{VERSION}")
            assert pinned.status == 404
    with running(Settings([green.url, peer.url]), index=tmp_path / "blue") as service:
        before = len(green.requests)
        for _ in range(6):  # The index's own embedder is preferred.
            assert service.ask("/v1/search", queries[0]).status == 200
        assert len(green.requests) == before
