"""Both clients against a KServe v2 server whose behaviour the test decides."""

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from kserve_peer import (
    DIM,
    ENGINE,
    VERSION,
    Peer,
    codes,
    fail_first,
    made_certificates,
    serving,
    slowly,
    vector,
    vectors,
)

from unified_embedding import Box, client
from unified_embedding.client import TLS, AsyncEmbedderClient, EmbedderClient, EngineWarning, Retry
from unified_embedding.client import _job as job
from unified_embedding.client import _kserve as kserve
from unified_embedding.errors import (
    ClientError,
    DeadlineExceeded,
    Overloaded,
    RequestRejected,
    ServerError,
    ServerUnavailable,
    VersionMismatch,
)

IMAGES = [f"picture {row}".encode() for row in range(11)]
QUICK = Retry(attempts=5, first=0.001, longest=0.002)

Ask = Callable[..., Any]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as running:
        yield running


def blocking(peer: Peer, method: str, *arguments: Any, options: Any = None, **named: Any) -> Any:
    with EmbedderClient(peer.url, **{"retry": QUICK, **(options or {})}) as embedder:
        return getattr(embedder, method)(*arguments, **named)


def in_asyncio(peer: Peer, method: str, *arguments: Any, options: Any = None, **named: Any) -> Any:
    async def call() -> Any:
        async with AsyncEmbedderClient(peer.url, **{"retry": QUICK, **(options or {})}) as embedder:
            return await getattr(embedder, method)(*arguments, **named)

    return asyncio.run(call())


@pytest.fixture(params=[blocking, in_asyncio], ids=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Call one method of a fresh client of either kind."""
    return request.param


def test_a_list_is_split_and_answered_in_order(peer: Peer, ask: Ask) -> None:
    answer = ask(peer, "embed", IMAGES)
    np.testing.assert_array_equal(answer.embedding, vectors(IMAGES))
    np.testing.assert_array_equal(answer.code, codes(IMAGES))
    assert answer.embedding.dtype == np.float32
    assert answer.code.dtype == np.uint8
    assert (answer.version, answer.engine, len(answer)) == (VERSION, ENGINE, 11)
    assert sorted(len(request.images) for request in peer.requests) == [3, 4, 4]


@pytest.mark.parametrize("outputs", [["embedding"], ["code"], ["code", "embedding"]])
def test_only_what_was_asked_for_is_requested(peer: Peer, ask: Ask, outputs: list[str]) -> None:
    answer = ask(peer, "embed", IMAGES[:2], outputs=outputs)
    assert (answer.embedding is not None) == ("embedding" in outputs)
    assert (answer.code is not None) == ("code" in outputs)
    assert set(peer.requests[0].outputs) == {*outputs, "version"}
    assert len(answer) == 2


def test_an_empty_list_has_empty_vectors_and_a_version(peer: Peer, ask: Ask) -> None:
    answer = ask(peer, "embed", [])
    assert answer.embedding.shape == (0, DIM)
    assert answer.code.shape == (0, DIM // 8)
    assert answer.version == VERSION
    each = ask(peer, "embed_each", [], outputs=["code"])
    assert (len(each.embedded), each.embedded.embedding, each.rows, each.errors) == (
        0,
        None,
        (),
        {},
    )
    assert not peer.requests


def test_requests_say_by_when_they_must_be_answered(peer: Peer, ask: Ask) -> None:
    peer.respond = fail_first(2, grpc.StatusCode.UNAVAILABLE)
    before = time.time()
    ask(peer, "embed", IMAGES, timeout=30)
    sent = [float(request.parameters["deadline"]) for request in peer.requests]
    assert len(sent) == 5
    assert len(set(sent)) == 1  # One moment for the whole list, retries included.
    assert before + 30 <= min(sent) + 0.001
    assert max(sent) <= time.time() + 30
    peer.requests.clear()
    ask(peer, "embed", IMAGES[:1], options={"send_deadline": False})
    assert "deadline" not in peer.requests[0].parameters


def test_each_picture_has_its_own_crop(peer: Peer, ask: Ask) -> None:
    boxes = [None, Box(0, 0, 0.5, 0.5), None, Box(0.25, 0, 1, 1), None]
    answer = ask(peer, "embed", IMAGES[:5], crops=boxes)
    for row, box in enumerate(boxes):
        crop = "" if box is None else str(box)
        np.testing.assert_array_equal(answer.embedding[row], vector(IMAGES[row], crop))
    crops = {request.images[0]: request.parameters.get("crop") for request in peer.requests}
    assert crops == {IMAGES[0]: ";0,0,0.5,0.5;;0.25,0,1,1", IMAGES[4]: None}


def test_one_crop_serves_all(peer: Peer, ask: Ask) -> None:
    box = Box(0.1, 0.2, 0.3, 0.4)
    answer = ask(peer, "embed", IMAGES, crops=box)
    np.testing.assert_array_equal(answer.embedding, vectors(IMAGES, "0.1,0.2,0.3,0.4"))


def test_a_refused_picture_is_named_by_its_row_in_the_callers_list(peer: Peer, ask: Ask) -> None:
    images = list(IMAGES)
    images[6] = images[9] = b"bad"
    with pytest.raises(RequestRejected, match=r"^image 6: not an image$") as refusal:
        ask(peer, "embed", images)
    assert refusal.value.row == 6


@settings(max_examples=25, deadline=None)
@given(bad=st.sets(st.integers(0, 18)), asynchronous=st.booleans())
def test_embed_each_loses_no_good_picture(bad: set[int], asynchronous: bool) -> None:
    images = [b"bad" if row in bad else f"{row}".encode() for row in range(19)]
    with serving(Peer()) as peer:
        answer = (in_asyncio if asynchronous else blocking)(peer, "embed_each", images)
    good = [row for row in range(19) if row not in bad]
    assert list(answer.rows) == good
    assert answer.embedded.embedding.tolist() == [vector(images[row]).tolist() for row in good]
    assert len(answer.embedded.code) == len(good)
    assert {row: error.row for row, error in answer.errors.items()} == {row: row for row in bad}
    assert all(str(error) == f"image {row}: not an image" for row, error in answer.errors.items())
    # One more request for each bad picture, except where it was the last of its request.
    assert 5 <= len(peer.requests) <= 5 + len(bad)


def test_what_is_too_much_for_one_request_is_sent_as_two(peer: Peer, ask: Ask) -> None:
    """The refusal names no picture; each of them alone is fine."""
    peer.max_batch_size = 16
    images = [f"{row}".encode() for row in range(8)]
    images[6] = b"oracle"
    np.testing.assert_array_equal(ask(peer, "embed", images).embedding, vectors(images))
    assert [len(request.images) for request in peer.requests] == [8, 4, 4, 2, 2, 1, 1]
    images[7] = b"bad"
    answer = ask(peer, "embed_each", images)
    assert answer.rows == tuple(range(7))
    np.testing.assert_array_equal(answer.embedded.embedding, vectors(images[:7]))
    assert {row: error.row for row, error in answer.errors.items()} == {7: 7}


def test_a_refusal_that_names_no_picture_and_holds_for_each(peer: Peer, ask: Ask) -> None:
    wrong = (grpc.StatusCode.INVALID_ARGUMENT, "something in this request is wrong")
    peer.respond = lambda number, request: wrong
    with pytest.raises(RequestRejected, match=r"^something in this request is wrong$") as refusal:
        ask(peer, "embed", [b"a", b"b", b"c", b"d"])
    assert refusal.value.row is None
    assert [len(request.images) for request in peer.requests] == [4, 2, 1]


def test_a_refusal_of_a_row_that_was_not_sent(peer: Peer, ask: Ask) -> None:
    peer.respond = lambda number, request: (grpc.StatusCode.INVALID_ARGUMENT, "image 7: odd")
    with pytest.raises(RequestRejected) as refusal:
        ask(peer, "embed", IMAGES[:2])
    assert refusal.value.row is None
    assert set(ask(peer, "embed_each", IMAGES[:2]).errors) == {0, 1}


def test_embed_each_keeps_what_was_answered_when_the_server_fails(peer: Peer, ask: Ask) -> None:
    peer.respond = lambda number, request: (
        (grpc.StatusCode.INTERNAL, "something broke") if IMAGES[5] in request.images else None
    )
    answer = ask(peer, "embed_each", IMAGES)
    assert answer.rows == (0, 1, 2, 3, 8, 9, 10)
    np.testing.assert_array_equal(
        answer.embedded.embedding, vectors([IMAGES[row] for row in answer.rows])
    )
    assert set(answer.errors) == {4, 5, 6, 7}
    assert {type(error) for error in answer.errors.values()} == {ServerError}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.CANCELLED, Overloaded),
        (grpc.StatusCode.INVALID_ARGUMENT, RequestRejected),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.NOT_FOUND, ServerError),
    ],
)
def test_other_failures_are_not_retried(
    peer: Peer, ask: Ask, code: grpc.StatusCode, error: type[ClientError]
) -> None:
    peer.respond = fail_first(1, code)
    with pytest.raises(error, match="as told") as caught:
        ask(peer, "embed", IMAGES[:1])
    assert type(caught.value) is error
    assert len(peer.requests) == 1


def test_an_answer_that_does_not_come_misses_the_deadline(peer: Peer) -> None:
    free = threading.Event()
    peer.respond = lambda number, request: free.wait(60) and None

    async def in_asyncio() -> None:
        async with AsyncEmbedderClient(peer.url) as embedder:
            await embedder.embed([])
            with pytest.raises(DeadlineExceeded):
                await embedder.embed(IMAGES[:1], timeout=0.2)

    try:
        with EmbedderClient(peer.url) as embedder:
            embedder.embed([])  # It knows what is served.
            with pytest.raises(DeadlineExceeded):
                embedder.embed(IMAGES[:1], timeout=0.2)
            answer = embedder.embed_each(IMAGES[:1], timeout=0.2)
        assert type(answer.errors[0]) is DeadlineExceeded
        asyncio.run(in_asyncio())
    finally:
        free.set()


def test_waiting_for_a_place_in_flight_counts_towards_the_deadline(peer: Peer, ask: Ask) -> None:
    peer.respond = slowly(0.6)
    with pytest.raises(DeadlineExceeded):
        ask(peer, "embed", IMAGES, timeout=0.9, options={"max_inflight": 1})
    assert len(peer.requests) <= 2


def test_requests_of_one_list_are_in_flight_together_up_to_the_bound(peer: Peer, ask: Ask) -> None:
    together = threading.Barrier(3)  # Answers only when three requests are waiting.
    peer.respond = lambda number, request: together.wait(timeout=30) and None
    images = [f"{row}".encode() for row in range(24)]
    answer = ask(peer, "embed", images, options={"max_inflight": 3})
    np.testing.assert_array_equal(answer.embedding, vectors(images))
    assert peer.most_at_once == 3


def test_callers_of_one_client_share_the_bound(peer: Peer) -> None:
    peer.respond = slowly(0.02)
    with EmbedderClient(peer.url, max_inflight=2) as embedder:
        answers: list[Any] = [None] * 8

        def call(index: int) -> None:
            answers[index] = embedder.embed(IMAGES[index : index + 1])

        threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.embedding[0], vector(IMAGES[index]))
    assert peer.most_at_once == 2


def test_cancelling_a_task_frees_its_places(peer: Peer) -> None:
    free, arrived = threading.Event(), threading.Event()
    freed: list[bool] = []

    def respond(number: int, request: Any) -> None:
        if number == 2:
            arrived.set()
        if number <= 2:
            freed.append(free.wait(timeout=30))

    async def scenario() -> Any:
        peer.respond = respond
        async with AsyncEmbedderClient(peer.url, max_inflight=2) as embedder:
            task = asyncio.create_task(embedder.embed(IMAGES))
            await asyncio.to_thread(arrived.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await embedder.embed(IMAGES[:1], timeout=20)

    try:
        answer = asyncio.run(scenario())
        assert not freed  # The cancelled requests were still being worked on.
    finally:
        free.set()
    np.testing.assert_array_equal(answer.embedding, vectors(IMAGES[:1]))


def test_another_version_than_expected_is_refused(peer: Peer, ask: Ask) -> None:
    with pytest.raises(VersionMismatch, match=f"serves embedder version {VERSION}, expected abc"):
        ask(peer, "embed", IMAGES[:1], options={"expect_version": "abc"})
    assert not peer.requests


@pytest.mark.parametrize("method", ["embed", "embed_each"])
def test_every_answer_is_checked_not_only_the_first(peer: Peer, ask: Ask, method: str) -> None:
    peer.stamp = lambda number: f"new {ENGINE}"  # Restarted after it was asked what it serves.
    with pytest.raises(VersionMismatch, match=f"serves embedder version new, expected {VERSION}"):
        ask(peer, method, IMAGES[:1], options={"expect_version": VERSION})


@pytest.mark.parametrize("method", ["embed", "embed_each"])
def test_another_version_is_taken_where_the_servers_embedder_declares_ours(
    peer: Peer, ask: Ask, method: str
) -> None:
    peer.config_compatible = "abcabcabcabc 111111111111"
    answer = ask(peer, method, IMAGES[:3], options={"expect_version": "abcabcabcabc"})
    found = getattr(answer, "embedded", answer)
    assert found.version == VERSION
    assert found.compatible_with == ("abcabcabcabc", "111111111111")
    assert found.origin.may_search("111111111111")
    assert ask(peer, "info").origin.may_search("abcabcabcabc")
    with pytest.raises(VersionMismatch, match="expected 222222222222"):
        ask(peer, method, IMAGES[:1], options={"expect_version": "222222222222"})


@pytest.mark.parametrize("declares", [False, True])
def test_a_server_that_changed_its_model_is_asked_what_the_new_one_declares(
    peer: Peer, declares: bool
) -> None:
    new = "abcabcabcabc"
    with EmbedderClient(peer.url, expect_version=VERSION) as embedder:
        assert embedder.embed(IMAGES[:1]).version == VERSION
        peer.stamp, peer.config_version = (lambda number: f"{new} {ENGINE}"), new
        peer.config_compatible = VERSION if declares else ""
        if declares:
            assert embedder.embed(IMAGES[:1]).compatible_with == (VERSION,)
        else:
            with pytest.raises(VersionMismatch, match=f"serves embedder version {new}"):
                embedder.embed(IMAGES[:1])


def test_an_address_may_name_the_model() -> None:
    for url, address, model in (
        ("host:8001/v2-unified_embedding", "host:8001", "v2-unified_embedding"),
        ("dns:///host:8001", "dns:///host:8001", "unified_embedding"),
        ("dns:///host:8001/v2-unified_embedding", "dns:///host:8001", "v2-unified_embedding"),
        ("unix:/run/embedder", "unix:/run/embedder", "unified_embedding"),
    ):
        with EmbedderClient(url) as embedder:
            assert (embedder.url, embedder.names.ensemble) == (address, model)
    with pytest.raises(ValueError, match="give the name of an ensemble"):
        EmbedderClient("host:8001/resnet")
    with pytest.raises(ValueError, match="names a model"):
        EmbedderClient("host:8001/v2-unified_embedding", model="v3-unified_embedding")


@pytest.mark.parametrize("method", ["embed", "embed_each"])
def test_two_versions_never_mix_in_one_list(peer: Peer, ask: Ask, method: str) -> None:
    peer.stamp = lambda number: f"{VERSION if number < 3 else 'new'} {ENGINE}"
    with pytest.raises(VersionMismatch, match="answered by embedder versions"):
        ask(peer, method, IMAGES)


def test_another_engine_is_accepted_with_one_warning(peer: Peer) -> None:
    with EmbedderClient(peer.url, expect_engine="other-engine") as embedder:
        with pytest.warns(EngineWarning, match=f"{ENGINE}, expected other-engine") as record:
            embedder.embed(IMAGES)
        assert len(record) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            embedder.embed(IMAGES)


def test_replicas_with_two_engines_are_both_named(peer: Peer, ask: Ask) -> None:
    peer.stamp = lambda number: f"{VERSION} {ENGINE if number < 3 else 'test-bf16'}"
    with pytest.warns(EngineWarning):
        answer = ask(peer, "embed", IMAGES)
    assert set(answer.engine.split(" + ")) == {ENGINE, "test-bf16"}


def test_what_a_server_says_about_itself(peer: Peer, ask: Ask) -> None:
    peer.max_batch_size = 16
    info = ask(peer, "info")
    assert info == client.ServerInfo(VERSION, ENGINE, DIM, 224, 16, "2.51.0")
    assert info.code_bytes == DIM // 8
    assert ask(peer, "is_ready") is True


def test_statistics_are_running_totals(peer: Peer, ask: Ask) -> None:
    ask(peer, "embed", IMAGES)
    totals = ask(peer, "statistics")
    assert set(totals) == {"binarizer", "embedder", "preprocess", "unified_embedding"}
    stage = totals["embedder"]
    assert (stage.requests, stage.inferences, stage.mean_batch) == (3, 11, 11.0)
    assert (stage - stage) == client.StageStatistics()
    assert client.StageStatistics().mean_batch == 0


def test_models_of_another_project_are_refused(peer: Peer, ask: Ask) -> None:
    peer.config_version = ""
    with pytest.raises(ServerError, match=r"not an embedder of this project.*make engine"):
        ask(peer, "embed", IMAGES[:1])


def _halve_rows(response: Any) -> None:
    response.outputs[1].shape[0] = 1
    response.raw_output_contents[1] = response.raw_output_contents[1][: 4 * DIM]


def _widen(response: Any) -> None:
    response.outputs[1].shape[1] *= 2


def _empty(response: Any) -> None:
    response.raw_output_contents[1] = b""


def _drop_last(response: Any) -> None:
    del response.outputs[-1]


def _no_engine(response: Any) -> None:
    response.raw_output_contents[2] = b"\4\0\0\0v123" * 2


def _two_versions(response: Any) -> None:
    response.raw_output_contents[2] = b"\4\0\0\0v1 a\4\0\0\0v2 a"


def _cast(response: Any) -> None:
    response.outputs[1].datatype = "FP64"


@pytest.mark.parametrize(
    "damage", [_halve_rows, _widen, _empty, _drop_last, _no_engine, _two_versions, _cast]
)
def test_an_answer_against_the_contract_is_an_error(
    peer: Peer, ask: Ask, damage: Callable[[Any], None]
) -> None:
    peer.alter = damage  # Outputs come in the order code, embedding, version.
    with pytest.raises(ServerError, match="server"):
        ask(peer, "embed", IMAGES[:2])


def test_a_picture_larger_than_a_message_is_refused_here(
    peer: Peer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kserve, "MAX_IMAGE_BYTES", 100)
    images = [b"small", b"x" * 101, b"small too"]
    with pytest.raises(RequestRejected, match=r"image 1: .*101 bytes"):
        ask(peer, "embed", images)
    answer = ask(peer, "embed_each", images)
    assert (answer.rows, set(answer.errors)) == ((0, 2), {1})


@given(sizes=st.lists(st.integers(0, 70), max_size=40), most=st.integers(1, 9))
def test_split_covers_every_row_once_within_both_limits(sizes: list[int], most: int) -> None:
    images = [b"x" * size for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "REQUEST_BYTES", 100)
        requests = job.Job.of(images, None, ["code"]).split(most)
    assert [row for rows in requests for row in rows] == list(range(len(sizes)))
    for rows in requests:
        assert 1 <= len(rows) <= most
        assert len(rows) == 1 or sum(sizes[row] for row in rows) <= 100
    for left, right in itertools.pairwise(requests):
        assert len(left) == most or sum(sizes[row] for row in [*left, right[0]]) > 100


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": b"one picture"}, TypeError, r"embed\(\[data\]\)"),
        ({"images": "chair.jpg"}, TypeError, "sequence of encoded pictures"),
        ({"images": [b"x", "chair.jpg"]}, TypeError, "image 1 is str, not bytes"),
        ({"images": [b"x"], "outputs": []}, ValueError, "outputs"),
        ({"images": [b"x"], "outputs": "code"}, ValueError, "outputs 'code'"),
        ({"images": [b"x"], "outputs": ["codes"]}, ValueError, "outputs"),
        ({"images": [b"x"], "crops": [None, None]}, ValueError, "2 crops for 1 pictures"),
        ({"images": [b"x"], "timeout": 0}, ValueError, "timeout 0"),
        ({"images": [b"x"], "timeout": float("inf")}, ValueError, "timeout inf"),
    ],
)
def test_mistakes_of_the_caller_are_named(
    peer: Peer, ask: Ask, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(peer, "embed", **arguments)
    assert not peer.requests


def test_mistakes_of_configuration_are_named() -> None:
    with pytest.raises(ValueError, match="gRPC address as host:port"):
        EmbedderClient("http://127.0.0.1:8000")
    with pytest.raises(ValueError, match="max_inflight 0"):
        EmbedderClient(max_inflight=0)
    with pytest.raises(ValueError, match="timeout -1"):
        EmbedderClient(timeout=-1)
    with pytest.raises(ValueError, match="attempts"):
        Retry(attempts=0)
    with pytest.raises(ValueError, match="private_key and certificate_chain"):
        TLS(private_key=Path("key.pem"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return made_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual-tls"])
def test_encrypted_connections(certificates: Path, ask: Ask, mutual: bool) -> None:
    pair = [(certificates / f"server.{end}").read_bytes() for end in ("key", "pem")]
    authority = (certificates / "ca.pem").read_bytes()
    server = grpc.ssl_server_credentials([tuple(pair)], authority if mutual else None, mutual)
    trust = TLS(root_certificates=certificates / "ca.pem")
    known = TLS(trust.root_certificates, certificates / "client.key", certificates / "client.pem")
    once = Retry(attempts=1)
    with serving(Peer(), server) as peer:
        answer = ask(peer, "embed", IMAGES, options={"tls": known if mutual else trust})
        np.testing.assert_array_equal(answer.embedding, vectors(IMAGES))
        with pytest.raises(ServerUnavailable):
            ask(peer, "info", options={"tls": trust if mutual else TLS(), "retry": once})
        with pytest.raises(ServerUnavailable):
            ask(peer, "info", options={"retry": once})


def test_without_tritonclient_the_error_says_what_to_install(root: Path) -> None:
    program = "import sys; sys.modules['tritonclient'] = None; import unified_embedding.client"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert result.returncode == 1
    assert "pip install 'unified-embedding[client]'" in result.stderr
