"""Pictures in, vectors and codes out: what SDKs send, and what they read."""

import base64
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from api_service import Service, running, url
from hypothesis import given
from hypothesis import strategies as st
from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, mortal, serving, vector, vectors

from unified_embedding.api.app import Settings
from unified_embedding.api.problems import ApiError
from unified_embedding.api.wire import EmbeddingsRequest, parse


def float32(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_one_picture_and_a_list_in_the_order_of_the_caller(service: Service) -> None:
    one = service.ask("/v1/embeddings", {"input": url(b"chair"), "model": "unified-embedder"})
    assert one.status == 200
    (row,) = one.said["data"]
    assert (row["object"], row["index"]) == ("embedding", 0)
    assert np.array_equal(np.float32(row["embedding"]), vector(b"chair"))
    assert "code" not in row
    assert {one.said[name] for name in ("version", "engine")} == {VERSION, ENGINE}
    assert one.said["usage"] == {"prompt_tokens": 0, "total_tokens": 0, "images": 1}
    # More than one request of the server holds.
    images = [b"%d" % number for number in range(11)]
    found = service.embed(*map(url, images)).said["data"]
    assert [row["index"] for row in found] == list(range(11))
    assert np.array_equal(np.float32([row["embedding"] for row in found]), vectors(images))


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("kinds", ["float", "ubinary", ["ubinary"], ["float", "ubinary"]])
def test_every_encoding_of_every_kind(
    service: Service, peer: Peer, encoding: str, kinds: Any
) -> None:
    answer = service.embed(url(b"a"), url(b"b"), encoding_format=encoding, embedding_type=kinds)
    images = [b"a", b"b"]
    for row, right, code in zip(answer.said["data"], vectors(images), codes(images), strict=True):
        if "float" in kinds:
            read = float32 if encoding == "base64" else np.float32
            assert np.array_equal(read(row["embedding"]), right)
        else:
            assert row["embedding"] == []
        if "ubinary" in kinds:
            assert base64.b64decode(row["code"]) == code.tobytes()
        else:
            assert "code" not in row
    asked = {"embedding": "float" in kinds, "code": "ubinary" in kinds}
    assert {name for name, wanted in asked.items() if wanted} <= set(peer.requests[-1].outputs)


def test_a_picture_as_the_body(service: Service) -> None:
    for kind in ("image/jpeg", "image/x-whatever; q=1", "application/octet-stream"):
        path = "/v1/embeddings?embedding_type=float,ubinary&encoding_format=base64"
        answer = service.ask(path, b"\xff\xd8raw", {"Content-Type": kind})
        assert answer.status == 200
        assert np.array_equal(float32(answer.said["data"][0]["embedding"]), vector(b"\xff\xd8raw"))
    part = service.ask("/v1/embeddings?crop=0.1,0.25,0.5,1", b"raw", {"Content-Type": "image/png"})
    right = vector(b"raw", "0.1,0.25,0.5,1")
    assert np.array_equal(np.float32(part.said["data"][0]["embedding"]), right)
    for crop in ("", "0.5,0,0.2,1", "0,0,1", "a"):
        wrong = service.ask(f"/v1/embeddings?crop={crop}", b"raw", {"Content-Type": "image/png"})
        assert (wrong.status, wrong.error["param"]) == (400, "crop")
    # The steps of an answer, as browsers show them.
    steps = [step.partition(";dur=") for step in answer.headers["server-timing"].split(", ")]
    assert [name for name, _, _ in steps] == ["upload", "parse", "embed"]
    assert all(float(ms) >= 0 for _, _, ms in steps)
    empty = service.ask("/v1/embeddings", b"", {"Content-Type": "image/png"})
    assert (empty.status, empty.error["code"]) == (400, "empty_input")
    wrong = service.ask("/v1/embeddings?dimension=3", b"raw", {"Content-Type": "image/png"})
    assert (wrong.status, wrong.error["param"]) == (400, "dimension")
    assert service.ask("/v1/embeddings", b"a=1", {"Content-Type": "text/plain"}).status == 415


def test_crops_travel_beside_their_picture(service: Service, peer: Peer) -> None:
    crop = {"image": base64.b64encode(b"a").decode(), "crop": [0.1, 0.25, 0.5, 1]}
    whole = {"image": url(b"b")}
    answer = service.embed(crop, whole)
    assert answer.status == 200
    assert peer.requests[-1].parameters["crop"] == "0.1,0.25,0.5,1;"
    right = [vector(b"a", "0.1,0.25,0.5,1"), vector(b"b")]
    found = np.float32([row["embedding"] for row in answer.said["data"]])
    assert np.array_equal(found, right)


@pytest.mark.parametrize(
    ("wrong", "param", "told"),
    [
        ("a chair", "input", "is text, and this embedder sees pictures only"),
        (["data:image/png;base64,AAAA", "x"], "input[1]", "'x' is text"),
        ("https://example.org/a.jpg", "input", "addresses of pictures are not fetched"),
        ({"image": "HTTP://169.254.169.254/"}, "input", "addresses of pictures are not fetched"),
        ({"image": "file:///etc/passwd"}, "input", "addresses of pictures are not fetched"),
        ("data:image/png,%00", "input", "is a data URL without ;base64,"),
        ("data:image/png;base64,A", "input", "not valid base64"),
        ("data:image/png;base64,AA==AA==", "input", "not valid base64"),
        ({"image": "%%%"}, "input", "not valid base64"),
        ({"image": 3}, "input.image", "is not a string"),
        ({"picture": "AAAA"}, "input", "unknown field `picture`"),
        ({"image": "AAAA", "crop": [0, 0, 1]}, "input", "length 4"),
        ({"image": "AAAA", "crop": [0.5, 0, 0.2, 1]}, "input.crop", "is not a box"),
        ([[1, 2, 3]], "input[0]", "sees pictures only"),
        (17, "input", "sees pictures only"),
        (None, "input", "sees pictures only"),
        ([], "input", "is an empty list"),
        (["data:,"] * 257, "input", "has 257 pictures; send at most 256"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(
    service: Service, peer: Peer, wrong: Any, param: str, told: str
) -> None:
    answer = service.ask("/v1/embeddings", {"input": wrong})
    assert (answer.status, answer.error["param"]) == (400, param)
    assert told in answer.error["message"]
    assert len(answer.error["message"]) < 400
    assert answer.headers["x-should-retry"] == "false"
    assert not peer.requests


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"embedding_type": "int8"}, "embedding_type"),
        ({"embedding_type": []}, "embedding_type"),
        ({"dimensions": "16"}, "dimensions"),
        ({"dimensions": 8}, "dimensions"),
        ({"partial": 1}, "partial"),
        ({"inputs": []}, None),
    ],
)
def test_wrong_fields_are_named(service: Service, fields: dict[str, Any], param: str) -> None:
    answer = service.embed(url(b"a"), **fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert (param or "inputs") in answer.error["message"]


def test_what_is_not_json_is_refused(service: Service) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"input": "a"} x', b"null"):
        answer = service.ask("/v1/embeddings", body)
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


def test_escapes_and_broken_lines_are_read(service: Service) -> None:
    """PHP writes a slash as backslash and slash; MIME encoders break lines at 76."""
    image = bytes(range(256))
    text = base64.b64encode(image).decode()
    php = json.dumps(url(image)).replace("/", "\\/")
    lines = json.dumps(
        "data:image/png;base64," + "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    )
    for written in (php, lines):
        answer = service.ask("/v1/embeddings", b'{"input": [%s]}' % written.encode())
        assert np.array_equal(np.float32(answer.said["data"][0]["embedding"]), vector(image))


def test_bad_pictures_are_told_by_their_index(service: Service) -> None:
    images = [url(b"bad" if number in (2, 9) else b"%d" % number) for number in range(12)]
    answer = service.embed(*images)
    assert (answer.status, answer.error["param"]) == (400, "input[2]")
    assert answer.error["message"].startswith("2 of 12 pictures were not embedded; input[2]: ")
    assert [image["index"] for image in answer.error["images"]] == [2, 9]
    partial = service.embed(*images, partial=True)
    assert partial.status == 200
    assert [row["index"] for row in partial.said["data"]] == [0, 1, 3, 4, 5, 6, 7, 8, 10, 11]
    assert [(one["index"], one["code"]) for one in partial.said["errors"]] == [
        (2, "invalid_image"), (9, "invalid_image"),
    ]  # fmt: skip
    for row in partial.said["data"]:
        right = vector(b"%d" % row["index"])
        assert np.array_equal(np.float32(row["embedding"]), right)
    # An answer without a row is what SDKs take for a broken server.
    assert service.embed(url(b"bad"), partial=True).status == 400


def test_the_model_pins_a_version(service: Service, peer: Peer) -> None:
    assert service.embed(url(b"a"), model=f"unified-embedder@{VERSION}").status == 200
    for model in ("unified-embedder@0000", "text-embedding-3-small", "unified-embedder@", ""):
        answer = service.embed(url(b"a"), model=model)
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert answer.headers["x-should-retry"] == "false"
    assert len(peer.requests) == 1
    # The server changes its model between two answers.
    peer.config_version, peer.stamp = "fedcba987654", lambda number: f"fedcba987654 {ENGINE}"
    assert service.embed(url(b"a"), model=f"unified-embedder@{VERSION}").status == 404
    assert service.embed(url(b"a"), model="unified-embedder@fedcba987654").status == 200


@pytest.mark.parametrize(
    ("failure", "status", "code", "again"),
    [
        ((grpc.StatusCode.CANCELLED, "late"), 429, "overloaded", "retry-after"),
        ((grpc.StatusCode.UNAVAILABLE, "away"), 503, "unavailable", "retry-after"),
        ((grpc.StatusCode.INTERNAL, "odd"), 502, "bad_gateway", "x-should-retry"),
        ((grpc.StatusCode.INVALID_ARGUMENT, "no"), 400, "invalid_image", "x-should-retry"),
        ((grpc.StatusCode.DEADLINE_EXCEEDED, "slow"), 504, "deadline_exceeded", None),
    ],
)
def test_what_the_server_answers_becomes_a_status_that_sdks_understand(
    service: Service, peer: Peer, failure: Any, status: int, code: str, again: str | None
) -> None:
    peer.respond = lambda number, request: failure
    answer = service.ask("/v1/embeddings", {"input": url(b"a")}, headers={"x-request-timeout": "3"})
    assert (answer.status, answer.error["code"]) == (status, code)
    assert {"retry-after", "x-should-retry"} & set(answer.headers) == ({again} if again else set())


@pytest.mark.parametrize(
    ("headers", "longest"),
    [
        ({"x-request-timeout": "0.5"}, 0.5),
        ({"X-Stainless-Read-Timeout": "0.5"}, 0.5),
        ({"X-Stainless-Timeout": "0.5"}, 0.5),
        ({"X-Stainless-Read-Timeout": "NOT_GIVEN", "x-request-timeout": "0.5"}, 0.5),
    ],
)
def test_the_callers_deadline_is_the_servers(
    service: Service, peer: Peer, headers: dict[str, str], longest: float
) -> None:
    service.embed(url(b"a"))
    answer = service.ask("/v1/embeddings", {"input": url(b"a")}, headers=headers)
    assert answer.status == 200
    first, second = (float(request.parameters["deadline"]) for request in peer.requests)
    assert second - first < 50  # Not the 60 s of a caller that says nothing.
    assert longest == 0.5


def test_a_deadline_that_is_no_number_is_refused(service: Service) -> None:
    for text in ("soon", "-1", "0", "nan"):
        answer = service.ask(
            "/v1/embeddings", {"input": url(b"a")}, headers={"x-request-timeout": text}
        )
        assert (answer.status, answer.error["param"]) == (400, "x-request-timeout")


def test_a_server_that_is_away_costs_nothing_while_another_is_there(peer: Peer) -> None:
    with serving(Peer()) as second:
        gone = second.url
    with running(Settings([gone, peer.url])) as service:
        for number in range(6):
            assert service.embed(url(b"%d" % number)).status == 200
        assert len(peer.requests) == 6
        assert service.ask("/v1/health/ready").status == 200
    with running(Settings([gone])) as service:
        assert service.ask("/v1/health/ready").status == 503
        assert service.ask("/v1/health/live").status == 200
        answer = service.embed(url(b"a"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert service.ask("/v1/models").status == 503


def test_both_servers_work(peer: Peer) -> None:
    with serving(Peer()) as second, running(Settings([peer.url, second.url])) as service:
        peer.respond = lambda number, request: (grpc.StatusCode.UNAVAILABLE, "draining")
        for number in range(4):
            answer = service.embed(*(url(b"%d.%d" % (number, part)) for part in range(9)))
            assert answer.status == 200
            assert len(answer.said["data"]) == 9
        assert second.requests


def test_a_picture_that_ends_the_server_is_given_up_alone(tmp_path: Path) -> None:
    with mortal(tmp_path) as peer, running(Settings([peer.url])) as service:
        assert service.embed(url(b"first")).status == 200
        images = [b"poison" if number == 5 else b"%d" % number for number in range(12)]
        answer = service.embed(*map(url, images), partial=True)
        assert answer.status == 200
        assert [row["index"] for row in answer.said["data"]] == [*range(5), *range(6, 12)]
        for row in answer.said["data"]:
            assert np.array_equal(np.float32(row["embedding"]), vector(images[row["index"]]))
        ((error),) = answer.said["errors"]
        assert (error["index"], error["code"]) == (5, "image_aborted")
        assert peer.deaths <= 2
        alone = service.embed(url(b"poison"))
        assert (alone.status, alone.headers["x-should-retry"]) == (422, "false")
        assert peer.deaths <= 4


@given(st.binary(max_size=300), st.sampled_from(["image/jpeg", "image/svg+xml", ""]))
def test_any_bytes_travel_unchanged(image: bytes, kind: str) -> None:
    from unified_embedding.api.pictures import parse_input

    for written in (url(image, kind), [{"image": base64.b64encode(image).decode()}]):
        wanted = parse(json.dumps({"input": written}).encode(), EmbeddingsRequest)
        assert [one.data for one in parse_input(wanted.input)] == [image]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["image", "crop", "input", "x"]), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    from unified_embedding.api.pictures import parse_input

    for body in ({"input": value}, value):
        try:
            parse_input(parse(json.dumps(body).encode(), EmbeddingsRequest).input)
        except ApiError as problem:
            assert problem.status == 400  # noqa: PT017


def test_models_are_listed(service: Service) -> None:
    listed = service.ask("/v1/models").said["data"]
    assert [model["id"] for model in listed] == ["unified-embedder", f"unified-embedder@{VERSION}"]
    for model in listed:
        assert (model["dimensions"], model["code_bytes"]) == (DIM, DIM // 8)
        assert model["limits"]["images"] == 256
        assert service.ask(f"/v1/models/{model['id']}").said == model
    assert service.ask("/v1/models/gpt").error["code"] == "model_not_found"
