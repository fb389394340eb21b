"""What the clients do while a server is away, and after it died over a request."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from kserve_peer import DEAD_STUB, Mortal, Peer, Request, codes, mortal, serving, vectors

from unified_embedding.client import AsyncEmbedderClient, EmbedderClient, Retry, _retry
from unified_embedding.client._calls import Deadline
from unified_embedding.client._retry import Attempts, Lives
from unified_embedding.errors import (
    ClientError,
    RequestAborted,
    RequestRejected,
    ServerDied,
    ServerUnavailable,
)

IMAGES = [f"picture {row}".encode() for row in range(11)]
QUICK = Retry(attempts=5, first=0.001, longest=0.002)
WAITING = Retry(first=0.01, longest=0.1)
Ask = Callable[..., Any]
# Seen from an embedder that was stopped for 1.2 s: the picture is as good as any.
LOST_STEP = (
    grpc.StatusCode.INVALID_ARGUMENT,
    "in ensemble 'unified_embedding', [request id: <id_unknown>] expected 1 inputs but got 0 "
    "inputs for model 'binarizer'. Got input(s) [], but missing required input(s) ['features']",
)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as running:
        yield running


@pytest.fixture(params=[0, 0.5], ids=["dies", "lingers"])
def doomed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mortal]:
    """A server that a picture ends: at once, or some time after its model."""
    with mortal(tmp_path, request.param) as running:
        yield running


def blocking(url: str, method: str, *arguments: Any, options: Any = None, **named: Any) -> Any:
    with EmbedderClient(url, **{"retry": WAITING, **(options or {})}) as embedder:
        return getattr(embedder, method)(*arguments, **named)


def in_asyncio(url: str, method: str, *arguments: Any, options: Any = None, **named: Any) -> Any:
    async def call() -> Any:
        async with AsyncEmbedderClient(url, **{"retry": WAITING, **(options or {})}) as embedder:
            return await getattr(embedder, method)(*arguments, **named)

    return asyncio.run(call())


@pytest.fixture(params=[blocking, in_asyncio], ids=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Call one method of a fresh client of either kind."""
    return request.param


# What a server says that stops or starts, as Triton 2.51 words it.
AWAY = [
    (grpc.StatusCode.UNAVAILABLE, "Server is stopping, scheduler for model has stopped"),
    (
        grpc.StatusCode.NOT_FOUND,
        "Request for unknown model: 'unified_embedding' has no available versions",
    ),
    (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'unified_embedding' is not found"),
]


@pytest.mark.parametrize("failure", AWAY, ids=lambda failure: failure[1][:40])
def test_a_server_that_is_away_is_asked_again(
    peer: Peer, ask: Ask, failure: tuple[grpc.StatusCode, str]
) -> None:
    peer.respond = lambda number, request: failure if number <= 7 else None
    answer = ask(peer.url, "embed", IMAGES[:1])
    np.testing.assert_array_equal(answer.embedding, vectors(IMAGES[:1]))
    assert len(peer.requests) == 8


@pytest.mark.parametrize("failure", AWAY, ids=lambda failure: failure[1][:40])
def test_it_is_given_up_after_the_last_attempt(
    peer: Peer, ask: Ask, failure: tuple[grpc.StatusCode, str]
) -> None:
    peer.respond = lambda number, request: failure
    with pytest.raises(ServerUnavailable, match=re.escape(failure[1])):
        ask(peer.url, "embed", IMAGES[:1], options={"retry": QUICK})
    assert len(peer.requests) == QUICK.attempts


def test_attempts_end_when_no_pause_fits_the_deadline_any_more() -> None:
    lives = Lives()
    lives.answered(lives.sent())
    problem = ServerUnavailable("busy")
    with pytest.raises(ServerUnavailable, match="busy"):
        Attempts(Retry(first=8, longest=8), lives, Deadline(3)).pause(problem)
    assert 4 <= Attempts(Retry(first=8, longest=8), lives, Deadline(3600)).pause(problem) <= 8


def test_pauses_double_up_to_the_longest() -> None:
    retry = Retry(first=0.1, longest=0.5)
    for attempt, upper in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (5, 0.5), (10**6, 0.5)):
        pauses = [retry.pause(attempt) for _ in range(200)]
        assert upper / 2 <= min(pauses) < max(pauses) <= upper
        assert max(pauses) - min(pauses) > upper / 4


def test_a_server_that_never_answered_is_not_waited_for_like_one_that_did() -> None:
    problem, lives, hour = ServerUnavailable("refused"), Lives(), Deadline(3600)
    strange = Attempts(Retry(contact=0), lives, hour)
    with pytest.raises(ServerUnavailable):
        strange.pause(problem)
    lives.answered(lives.sent())
    known = Attempts(Retry(contact=0), lives, hour)
    assert all(known.pause(problem) > 0 for _ in range(50))


def test_nothing_listens(ask: Ask) -> None:
    with serving(Peer()) as peer:
        pass
    for method, arguments in (("embed", [IMAGES]), ("info", []), ("is_ready", [])):
        with pytest.raises(ServerUnavailable, match=f"{peer.url} is unavailable: .*refused"):
            ask(peer.url, method, *arguments, options={"timeout": 3600})


def test_a_server_that_is_not_ready_at_first_contact_is_not_waited_for(
    peer: Peer, ask: Ask
) -> None:
    peer.unknown = True
    with pytest.raises(ServerUnavailable, match="unknown model"):
        ask(peer.url, "embed", IMAGES, options={"timeout": 3600})


def test_a_restarted_server_is_found_again() -> None:
    with serving(Peer()) as first:
        embedder = EmbedderClient(first.url)
        embedder.embed(IMAGES)
    port = int(first.url.split(":")[1])
    second = Peer()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(embedder.embed(IMAGES, timeout=300)))
    thread.start()
    thread.join(3)  # Longer than a server that never answered is waited for.
    with serving(second, port=port):
        thread.join()
    embedder.close()
    np.testing.assert_array_equal(answers[0].embedding, vectors(IMAGES))


def test_a_killed_server_costs_no_call(doomed: Mortal) -> None:
    pictures = [f"{row}".encode() for row in range(60)]
    with EmbedderClient(doomed.url, timeout=300) as embedder:
        embedder.info()
        with ThreadPoolExecutor(6) as callers:
            answers = [callers.submit(embedder.embed, [picture]) for picture in pictures]
            for row in (5, 30):  # Others are in flight.
                answers[row].result()
                doomed.kill()
        found = np.concatenate([answer.result().code for answer in answers])
    np.testing.assert_array_equal(found, codes(pictures))
    assert doomed.deaths == 2


def test_a_poison_picture_is_sent_twice(doomed: Mortal, ask: Ask) -> None:
    with pytest.raises(RequestAborted, match=r"^image 0: the server died twice") as aborted:
        ask(doomed.url, "embed", [b"poison"], timeout=300)
    assert aborted.value.rows == (0,)
    assert doomed.received(b"poison") == [1, 1]
    assert doomed.deaths <= 2


def test_a_poison_picture_costs_its_request_in_a_list_of_all_or_nothing(
    doomed: Mortal, ask: Ask
) -> None:
    images = [*IMAGES[:6], b"poison", IMAGES[7]]
    with pytest.raises(RequestAborted, match="had the images 4 to 7, one of which") as aborted:
        ask(doomed.url, "embed", images, timeout=300)
    assert aborted.value.rows == (4, 5, 6, 7)
    assert doomed.received(b"poison") == [4, 4]


def test_a_poison_picture_alone_is_lost(doomed: Mortal, ask: Ask) -> None:
    images = [*IMAGES]
    images[6] = b"poison"
    answer = ask(doomed.url, "embed_each", images, timeout=300)
    assert {row: type(error) for row, error in answer.errors.items()} == {6: RequestAborted}
    assert answer.errors[6].rows == (6,)
    good = [row for row in range(11) if row != 6]
    assert list(answer.rows) == good
    np.testing.assert_array_equal(answer.embedded.code, codes([images[row] for row in good]))
    # With its neighbours, then alone, and never again.
    assert doomed.received(b"poison") == [4, 1]


def test_several_poison_pictures_among_many_callers(doomed: Mortal) -> None:
    lists = [[f"{caller} {row}".encode() for row in range(8)] for caller in range(6)]
    lists[1][2], lists[1][3], lists[4][7] = b"poison a", b"poison b", b"poison c"
    bad = {(1, 2), (1, 3), (4, 7)}
    with EmbedderClient(doomed.url, timeout=300) as embedder:
        embedder.info()
        with ThreadPoolExecutor(6) as callers:
            answers = list(callers.map(embedder.embed_each, lists))
    found = {(caller, row) for caller, answer in enumerate(answers) for row in answer.errors}
    assert found == bad
    for pictures, answer in zip(lists, answers, strict=True):
        assert {type(error) for error in answer.errors.values()} <= {RequestAborted}
        np.testing.assert_array_equal(
            answer.embedded.code, codes([pictures[row] for row in answer.rows])
        )
    assert doomed.deaths <= 2 * len(bad)


@pytest.mark.parametrize("death", [DEAD_STUB, LOST_STEP], ids=["dead stub", "lost step"])
def test_a_dead_model_process_that_stays_dead_is_one_death(
    peer: Peer, death: tuple[grpc.StatusCode, str], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody restarts the server, and Triton goes on saying so of some requests."""
    monkeypatch.setattr(_retry, "ILL_S", 0.01)
    peer.respond = lambda number, request: death if number <= 12 else None
    answer = ask(peer.url, "embed_each", IMAGES[:3], timeout=300)
    assert not answer.errors
    np.testing.assert_array_equal(answer.embedded.code, codes(IMAGES[:3]))


def test_an_ill_server_gets_no_suspect(peer: Peer) -> None:
    peer.respond = lambda number, request: DEAD_STUB if b"odd" in request.images else None
    with EmbedderClient(peer.url, retry=WAITING) as embedder:
        assert embedder.is_ready()
        with pytest.raises(ServerUnavailable, match="model is not ready"):
            embedder.embed([b"odd"], timeout=1)
        assert not embedder.is_ready()
        assert len(embedder.embed(IMAGES)) == len(IMAGES)  # Others are served.
    assert sum(b"odd" in request.images for request in peer.requests) == 1


def test_without_repetition_a_death_is_told_at_once(doomed: Mortal, ask: Ask) -> None:
    once = {"retry": Retry(attempts=1)}
    answer = ask(doomed.url, "embed_each", [b"good", b"poison"], options=once)
    assert {type(error) for error in answer.errors.values()} == {ServerDied}
    assert set(answer.errors) == {0, 1}
    assert doomed.received(b"poison") == [2]


@given(st.lists(st.sampled_from(["start", "send", "answer", "kill", "late"]), max_size=60))
def test_one_process_is_never_taken_for_two(events: list[str]) -> None:
    """Whatever a client sends, and however late it notices what a process answered."""
    lives, process, up = Lives(), 0, False
    flying: list[Any] = []  # What was known when it was sent to the process that is up.
    late: list[Any] = []  # Answered by a process that is gone, and not noticed yet.
    taken_for: dict[int, set[int]] = {}
    for event in events:
        if event == "start" and not up:
            process, up = process + 1, True
        elif event == "send":
            sent = lives.sent()
            flying.append(sent) if up else lives.lost(sent)
        elif event == "answer" and up and flying:
            lives.answered(flying.pop(0))
            taken_for.setdefault(process, set()).add(lives.sent().life)
        elif event == "kill" and up:
            for sent in flying[::2]:
                lives.lost(sent)
            late, flying, up = late + flying[1::2], [], False
        elif event == "late" and late:
            lives.answered(late.pop(0))
    assert all(len(several) == 1 for several in taken_for.values())


@given(answers=st.integers(1, 50))
def test_answers_alone_begin_no_life(answers: int) -> None:
    lives = Lives()
    for _ in range(answers):
        lives.answered(lives.sent())
    assert lives.sent().life == 1


def test_only_an_answer_to_what_was_sent_after_the_loss_begins_a_life() -> None:
    lives = Lives()
    lives.answered(lives.sent())
    early, late = lives.sent(), lives.sent()
    lives.lost(early)
    lives.answered(late)  # It was answered by the process that is gone.
    lives.lost(late)
    assert lives.sent().life == 1
    lives.answered(lives.sent())
    assert lives.sent().life == 2
    lives.lost(early)  # Noticed late: the new process is not gone.
    assert not lives.sent().over


def test_a_refused_picture_is_never_sent_again(peer: Peer, ask: Ask) -> None:
    with pytest.raises(RequestRejected):
        ask(peer.url, "embed", [b"bad"])
    assert len(peer.requests) == 1


def test_closing_a_client_is_not_the_servers_doing(peer: Peer) -> None:
    arrived, free = threading.Event(), threading.Event()

    def hold(number: int, request: Request) -> None:
        arrived.set()
        free.wait(60)

    async def scenario() -> None:
        embedder = AsyncEmbedderClient(peer.url)

        async def cleaning_up() -> None:
            """A task that was cancelled before, and goes on."""
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            await embedder.embed(IMAGES[:1])

        cleaning = asyncio.ensure_future(cleaning_up())
        await asyncio.sleep(0)
        cleaning.cancel()
        await asyncio.to_thread(arrived.wait, 60)
        arrived.clear()
        task = asyncio.ensure_future(embedder.embed(IMAGES[:1]))
        await asyncio.to_thread(arrived.wait, 60)
        await embedder.close()
        with pytest.raises(ClientError, match="was closed"):
            await cleaning
        with pytest.raises(ClientError, match="was closed") as told:
            await task
        assert type(told.value) is ClientError
        with pytest.raises(ClientError, match="was closed"):
            await embedder.info()

    peer.respond = hold
    try:
        embedder = EmbedderClient(peer.url)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(embedder.embed, IMAGES[:1])
            assert arrived.wait(60)
            embedder.close()
            with pytest.raises(ClientError, match="was closed") as told:
                call.result()
        assert type(told.value) is ClientError
        with pytest.raises(ClientError, match="was closed"):
            embedder.info()
        with pytest.raises(ClientError, match="was closed"):
            embedder.embed(IMAGES)
        arrived.clear()
        asyncio.run(scenario())
    finally:
        free.set()
