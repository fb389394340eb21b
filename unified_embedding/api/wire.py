"""The bodies of `POST /v1/embeddings` and `POST /v1/search`, and the answers' rows."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import pybase64
from msgspec import Meta
from numpy.typing import NDArray

from unified_embedding.api.problems import ApiError
from unified_embedding.client import Embedded

MODEL: Final = "unified-embedder"
MAX_K: Final = 1000

EmbeddingType = Literal["float", "ubinary"]


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/embeddings`; `input` is parsed by `pictures.parse_input`."""

    input: msgspec.Raw
    model: str = MODEL
    encoding_format: Literal["float", "base64"] = "float"
    embedding_type: EmbeddingType | Annotated[list[EmbeddingType], Meta(min_length=1)] = "float"
    dimensions: int | None = None
    user: str | None = None
    partial: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """What to ask the embedding server for."""
        wanted = [self.embedding_type] if isinstance(self.embedding_type, str) else (
            self.embedding_type
        )  # fmt: skip
        names = {"float": "embedding", "ubinary": "code"}
        return tuple(dict.fromkeys(names[kind] for kind in wanted))


class SearchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/search`: exactly one of `image`, `id`, `code` and `embedding`.

    What `/v1/embeddings` answered may be sent as it came: `embedding` as a list or as base64, with
    `version` and `engine`.
    """

    image: msgspec.Raw = msgspec.Raw()
    id: str | None = None
    code: bytes | None = None
    embedding: list[float] | bytes | None = None
    version: str | None = None
    engine: str | None = None
    k: int = 10
    where: str | None = None
    order: Literal["code", "asymmetric", "float"] = "code"
    group: bool = False
    model: str = MODEL


def parse(body: bytes | bytearray, kind: Any) -> Any:
    """A body as `kind`. Raises ApiError (400) naming the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        param = place.strip("`").removeprefix("$").removeprefix(".") or None
        raise ApiError(400, f"{param or 'the body'}: {message}", "invalid_value", param) from None
    except msgspec.DecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", "invalid_json") from None


def wanted_version(model: str) -> str | None:
    """The version that `model` pins, None for any. Raises ApiError (404)."""
    name, at, version = model.partition("@")
    if name != MODEL or (at and not version):
        raise no_model(model, f"use {MODEL}, or {MODEL}@VERSION to pin its version")
    return version or None


def no_model(model: str, advice: str) -> ApiError:
    """404: the model is not served."""
    return ApiError(404, f"the model {model[:80]!r} is not served here; {advice}",
                   "model_not_found", "model")  # fmt: skip


def rows(
    answer: Embedded, indices: Sequence[int], encoding: Literal["float", "base64"]
) -> list[dict[str, Any]]:
    """OpenAI's `data`: float vectors as lists or base64 of little-endian float32, codes as base64.

    Args:
        answer: vectors of N pictures.
        indices: for each row its index in the caller's list.
        encoding: how float vectors are written.
    """
    data = []
    for row, index in enumerate(indices):
        item: dict[str, Any] = {"object": "embedding", "index": index, "embedding": []}
        if answer.embedding is not None:
            item["embedding"] = _vector(answer.embedding[row], encoding)
        if answer.code is not None:
            item["code"] = pybase64.b64encode_as_string(answer.code[row].tobytes())
        data.append(item)
    return data


def _vector(vector: NDArray[np.float32], encoding: Literal["float", "base64"]) -> list[float] | str:
    if encoding == "base64":
        return pybase64.b64encode_as_string(vector.astype("<f4", copy=False).tobytes())
    return list(vector.tolist())
