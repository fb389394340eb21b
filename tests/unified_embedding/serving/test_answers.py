"""What happens to one request stays with it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from triton_python_backend_utils import Logger, Request, Tensor, TritonError

from unified_embedding.errors import Busy, CodeError, ImageError, Late, Malformed
from unified_embedding.serving import answers

ERRORS = {
    TritonError.INVALID_ARG: [ImageError("bad"), CodeError("bad"), Malformed("bad")],
    TritonError.CANCELLED: [Late(1.0, 2.0), Busy("much")],
    TritonError.INTERNAL: [
        KeyError("/srv/secret"), MemoryError(), RecursionError(), AssertionError("/srv/secret"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "/srv/secret"), StopIteration(), RuntimeError(),
    ],
}  # fmt: skip
REASON_OF = {TritonError.INVALID_ARG: "bad_input", TritonError.INTERNAL: "internal"}
REASONS = {Late: "late", Busy: "busy"}
ALL = [(code, error) for code, errors in ERRORS.items() for error in errors]


@pytest.fixture
def log() -> Iterator[list[str]]:
    Logger.errors.clear()
    yield Logger.errors
    Logger.errors.clear()


@pytest.fixture
def counted() -> list[str]:
    """The reasons that the model's metrics were told."""
    return []


def requests(count: int) -> list[Any]:
    return [Request("x", [number], json.dumps({"number": number})) for number in range(count)]


def number_of(request: Any, parameters: Any) -> list[Any]:
    assert parameters["number"] == request.tensors["x"].as_numpy()[0]
    return [Tensor("y", parameters["number"])]


@pytest.mark.parametrize(("code", "error"), ALL, ids=[type(error).__name__ for _, error in ALL])
def test_an_exception_fails_its_own_request_alone(
    code: int, error: Exception, log: list[str], counted: list[str]
) -> None:
    def work(request: Any, parameters: Any) -> list[Any]:
        if parameters["number"] == 2:
            raise error
        return number_of(request, parameters)

    found = answers.each(requests(5), work, counted.append)
    assert [answer.outputs for answer in found] == [{"y": 0}, {"y": 1}, {}, {"y": 3}, {"y": 4}]
    assert [answer.error is None for answer in found] == [True, True, False, True, True]
    refused = found[2].error
    assert refused.code == code
    assert counted == [REASONS.get(type(error)) or REASON_OF[code]]
    if code != TritonError.INTERNAL:
        assert refused.message == str(error)
        assert log == []
        return
    assert "secret" not in refused.message
    assert __file__ not in refused.message
    # The mark leads from the caller's message to the traceback.
    (report,) = log
    mark = refused.message.rpartition(" ")[2]
    assert report.startswith(f"{mark}: Traceback")
    assert type(error).__name__ in report


@pytest.mark.parametrize(("code", "error"), [(None, None), *ALL])
def test_a_request_may_be_answered_by_another_thread(
    code: int | None, error: Any, counted: list[str]
) -> None:
    waiting: list[Callable[[], None]] = []

    def rest() -> list[Any]:
        if error:
            raise error
        return [Tensor("y", 7)]

    (request,) = requests(1)
    found = answers.each([request], lambda *_: answers.Later(waiting.append, rest), counted.append)
    assert found == [None]
    assert request.sender.answers.empty()
    waiting[0]()
    answer = request.sender.answers.get_nowait()
    assert (answer.error and answer.error.code) == code
    assert len(counted) == (error is not None)
    assert answer.outputs == ({} if error else {"y": 7})
    assert request.sender.answers.empty()


def test_what_cannot_be_handed_over_is_refused_at_once(counted: list[str]) -> None:
    def hand_over(job: Callable[[], None]) -> None:
        raise Busy("too much")

    (request,) = requests(1)
    (found,) = answers.each([request], lambda *_: answers.Later(hand_over, list), counted.append)
    assert found.error.code == TritonError.CANCELLED
    assert request.sender.answers.empty()


@pytest.mark.parametrize("guilty", [{1}, {0, 3}, {0, 1, 2, 3}])
def test_a_batch_that_fails_is_tried_one_by_one(
    guilty: set[int], log: list[str], counted: list[str]
) -> None:
    runs: list[list[int]] = []

    def run(batch: list[int]) -> list[list[Any]]:
        runs.append(batch)
        if guilty & set(batch):
            raise RuntimeError("the engine fails")
        return [[Tensor("y", number)] for number in batch]

    found = answers.together(
        requests(4), lambda request, parameters: parameters["number"], run, counted.append
    )
    assert {place for place, answer in enumerate(found) if answer.error is not None} == guilty
    assert all(found[place].outputs == {"y": place} for place in set(range(4)) - guilty)
    # Bounded: once together, once each.
    assert runs == [[0, 1, 2, 3], [0], [1], [2], [3]]
    assert len(log) == len(guilty)
    assert counted == ["internal"] * len(guilty)


def test_what_is_refused_before_the_batch_does_not_enter_it(counted: list[str]) -> None:
    def prepare(request: Any, parameters: Any) -> int:
        if parameters["number"] % 2:
            raise Late(-1.0, 0.0)
        return int(parameters["number"])

    def run(batch: list[int]) -> list[list[Any]]:
        assert batch == [0, 2]
        return [[Tensor("y", number)] for number in batch]

    found = answers.together(requests(4), prepare, run, counted.append)
    codes = [answer.error and answer.error.code for answer in found]
    assert codes == [None, TritonError.CANCELLED, None, TritonError.CANCELLED]
    assert counted == ["late", "late"]
    assert answers.together(requests(0), prepare, run, counted.append) == []


def test_an_engine_that_answers_for_too_few_fails_them_and_mixes_none(
    log: list[str], counted: list[str]
) -> None:
    found = answers.together(
        requests(3), lambda request, parameters: 0, lambda batch: [], counted.append
    )
    assert [answer.error.code for answer in found] == [TritonError.INTERNAL] * 3


@pytest.mark.parametrize("text", ["{", "\x00", "[1]x"])
def test_parameters_that_are_no_json_are_the_callers_fault(text: str, counted: list[str]) -> None:
    (found,) = answers.each(
        [Request("x", [0], text)], lambda request, parameters: [], counted.append
    )
    assert found.error.code == TritonError.INVALID_ARG


@pytest.mark.parametrize("text", ["", "[]", "3", "null"])
def test_a_request_may_have_no_parameters(text: str, counted: list[str]) -> None:
    def work(request: Any, parameters: Any) -> list[Any]:
        assert parameters == {}
        return []

    assert answers.each([Request("x", [0], text)], work, counted.append)[0].error is None


def test_a_message_is_short_and_valid_utf8(counted: list[str]) -> None:
    def work(request: Any, parameters: Any) -> list[Any]:
        raise ImageError("\ud800" + "x" * 50_000)

    (found,) = answers.each([Request("x", [0])], work, counted.append)
    assert found.error.message.startswith("\\ud800xxx")
    assert len(found.error.message.encode()) < 2000
