"""What Triton is told about each request: its tensors, or its own error.

Every model answers through here, so that whatever happens to one request stays with it. An
exception that leaves a model's `execute` would fail all requests of its batch, with the traceback
as the callers' message.

| raised | the caller gets | counted as |
|---|---|---|
| ImageError, CodeError, Malformed | INVALID_ARGUMENT and the error's sentence | bad_input |
| Late | CANCELLED and the error's sentence | late |
| Busy | CANCELLED and the error's sentence | busy |
| anything else | INTERNAL and a mark, by which the server's log has the traceback | internal |

Importable inside Triton's Python backend only.
"""

import json
import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import triton_python_backend_utils as pb_utils

from unified_embedding.errors import Busy, CodeError, ImageError, Late, Malformed
from unified_embedding.serving.metrics import Reason

Parameters = Mapping[str, object]
Tensors = Sequence[Any]
Refused = Callable[[Reason], None]
Prepared = TypeVar("Prepared")

# gRPC drops an answer whose message exceeds what it sends as metadata.
_LONGEST: Final = 1000


@dataclass(frozen=True)
class Later:
    """What a request's work is when another thread does the rest of it.

    Attributes:
        hand_over: gives that thread what it is to do.
        work: the rest, which returns the tensors.
    """

    hand_over: Callable[[Callable[[], None]], None]
    work: Callable[[], Tensors]


def each(
    requests: Sequence[Any],
    work: Callable[[Any, Parameters], Tensors | Later],
    refused: Refused,
) -> list[Any]:
    """Answer every request with the tensors that `work(request, parameters)` returns.

    One whose work is done later is answered then, and has None here. `refused` is told why a
    request got none.
    """
    return [_each(request, work, refused) for request in requests]


def together(
    requests: Sequence[Any],
    prepare: Callable[[Any, Parameters], Prepared],
    run: Callable[[list[Prepared]], Sequence[Tensors]],
    refused: Refused,
) -> list[Any]:
    """Answer requests that are computed as one batch.

    Args:
        requests: as Triton hands them to `execute`.
        prepare: what of a request and its parameters goes into the batch.
        run: the tensors of each prepared request, in order. When it fails, each is tried once
            more, alone: the one that made it fail is the only one to.
        refused: is told why a request got no tensors.
    """
    answers: list[Any] = [None] * len(requests)
    prepared: dict[int, Prepared] = {}
    for place, request in enumerate(requests):
        try:
            prepared[place] = prepare(request, _parameters(request))
        except Exception as error:
            answers[place] = _refusal(error, refused)
    for place, answer in _run(prepared, run, refused).items():
        answers[place] = answer
    return answers


def _each(
    request: Any, work: Callable[[Any, Parameters], Tensors | Later], refused: Refused
) -> Any:
    try:
        found = work(request, _parameters(request))
        if not isinstance(found, Later):
            return pb_utils.InferenceResponse(list(found))
        found.hand_over(partial(_send, request, found.work, refused))
    except Exception as error:
        return _refusal(error, refused)
    return None


def _send(request: Any, work: Callable[[], Tensors], refused: Refused) -> None:
    try:
        answer = pb_utils.InferenceResponse(list(work()))
    except Exception as error:
        answer = _refusal(error, refused)
    final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    request.get_response_sender().send(answer, flags=final)


def _run(
    prepared: dict[int, Prepared],
    run: Callable[[list[Prepared]], Sequence[Tensors]],
    refused: Refused,
) -> dict[int, Any]:
    if not prepared:
        return {}
    try:
        found = run(list(prepared.values()))
        return {
            place: pb_utils.InferenceResponse(list(tensors))
            for place, tensors in zip(prepared, found, strict=True)
        }
    except Exception as error:
        if len(prepared) == 1:
            return {place: _refusal(error, refused) for place in prepared}
    return {place: _run({place: one}, run, refused)[place] for place, one in prepared.items()}


def _parameters(request: Any) -> Parameters:
    try:
        text = request.parameters()
        found = json.loads(text) if text else {}
    except ValueError as error:  # HTTP carries bytes that are not UTF-8 up to here.
        raise Malformed(f"a request parameter is not text in UTF-8 ({error})") from None
    return found if isinstance(found, dict) else {}


def _refusal(error: Exception, refused: Refused) -> Any:
    message = str(error)
    reason: Reason = "internal"
    if isinstance(error, ImageError | CodeError | Malformed):
        code, reason = pb_utils.TritonError.INVALID_ARG, "bad_input"
    elif isinstance(error, Late | Busy):
        code = pb_utils.TritonError.CANCELLED
        reason = "late" if isinstance(error, Late) else "busy"
    else:
        code, mark = pb_utils.TritonError.INTERNAL, secrets.token_hex(4)
        message = f"the server failed on this request; the reason is in its log, under {mark}"
        report = "".join(traceback.format_exception(error))
        pb_utils.Logger.log_error(f"{mark}: {report}")
    refused(reason)
    # Triton takes text that is valid UTF-8 only.
    message = message[:_LONGEST].encode("utf-8", "backslashreplace").decode()
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
