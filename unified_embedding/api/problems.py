"""What the API answers when it cannot do what was asked: OpenAI's error envelope.

    {"error": {"message": sentence, "type": ..., "param": ..., "code": ...}}

SDKs read two more things: `Retry-After`, and `x-should-retry`, which overrides their own rule
(openai-python and openai-node repeat 408, 409, 429 and every 5xx).
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from unified_embedding.errors import (
    ClientError,
    DeadlineExceeded,
    Overloaded,
    RequestAborted,
    RequestRejected,
    ServerUnavailable,
    VersionMismatch,
)

INVALID: Final = "invalid_request_error"
RETRY_SECONDS: Final = {429: 1, 503: 2}


class FailedImage(msgspec.Struct):
    """Why a picture of a request was not embedded."""

    index: int
    message: str
    code: str


class Problem(msgspec.Struct):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str
    images: Sequence[FailedImage] | UnsetType = UNSET


class Error(msgspec.Struct):
    """The body of every answer that is an error."""

    error: Problem


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: HTTP status.
        message: a sentence for the caller: what is wrong, and what to do.
        code: a word for programs.
        param: the field it is about, "input[3].crop" for instance.
        kind: OpenAI's error type.
        images: the pictures that cannot be embedded.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        kind: str | None = None,
        images: Sequence[FailedImage] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.kind = kind or (INVALID if status < 500 and status != 429 else "server_error")
        self.images = images
        self.headers: dict[str, str] = {}

    def response(self) -> Response:
        """The envelope, with the headers that tell SDKs whether to try again."""
        problem = Problem(self.message, self.kind, self.param, self.code, self.images or UNSET)
        headers = dict(self.headers)
        if self.status in RETRY_SECONDS:
            headers["Retry-After"] = str(RETRY_SECONDS[self.status])
        elif self.status != 504:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        body = msgspec.json.encode(Error(problem))
        return Response(body, self.status, headers, media_type="application/json")


def of_client(error: ClientError, param: str | None = None) -> ApiError:
    """What a failed call to the embedding server means to a caller of the API."""
    if isinstance(error, RequestRejected):
        return ApiError(400, error.reason, "invalid_image", param)
    if isinstance(error, RequestAborted):
        return ApiError(422, error.reason, "image_aborted", param)
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), "overloaded", kind="rate_limit_error")
    if isinstance(error, DeadlineExceeded):
        return ApiError(504, str(error), "deadline_exceeded")
    if isinstance(error, ServerUnavailable | VersionMismatch):
        return ApiError(503, str(error), "unavailable")
    return ApiError(502, str(error), "bad_gateway")
