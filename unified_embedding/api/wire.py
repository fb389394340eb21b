"""What the routes take and answer. `openapi.py` writes it down for callers."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import pybase64
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from unified_embedding.api.pictures import MAX_IMAGES, PICTURE
from unified_embedding.api.problems import ApiError, FailedImage
from unified_embedding.client import Embedded

MODEL: Final = "unified-embedder"
MAX_K: Final = 1000

Base64 = Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]
Chance = Annotated[int, Meta(description="From this distance on a hit is no nearer than chance.")]
Encoding = Literal["float", "base64"]
EmbeddingType = Literal["float", "ubinary"]
Model = Annotated[
    str, Meta(description=f"{MODEL}, or {MODEL}@VERSION to refuse every other version (404).")
]


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Pictures to embed."""

    input: Annotated[  # Parsed by `pictures.parse_input`.
        msgspec.Raw,
        Meta(
            extra_json_schema={
                "anyOf": [
                    *PICTURE["anyOf"],
                    {"type": "array", "items": PICTURE, "minItems": 1, "maxItems": MAX_IMAGES},
                ]
            }
        ),
    ]
    model: Model = MODEL
    encoding_format: Encoding = "float"
    embedding_type: Annotated[
        EmbeddingType | Annotated[list[EmbeddingType], Meta(min_length=1)],
        Meta(description="ubinary adds `code`: packed sign bits, base64."),
    ] = "float"
    dimensions: Annotated[int | None, Meta(description="The embedder's own width, or nothing.")] = (
        None
    )
    user: str | None = None
    partial: Annotated[
        bool, Meta(description="Answer the good pictures, with the others' errors beside.")
    ] = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """What to ask the embedding server for."""
        wanted = [self.embedding_type] if isinstance(self.embedding_type, str) else (
            self.embedding_type
        )  # fmt: skip
        names = {"float": "embedding", "ubinary": "code"}
        return tuple(dict.fromkeys(names[kind] for kind in wanted))


class Embedding(msgspec.Struct, tag_field="object", tag="embedding"):
    """One picture's vector: numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | Base64
    code: Base64 | UnsetType = UNSET


class Embeddings(msgspec.Struct, tag_field="object", tag="list"):
    """One row for each picture."""

    data: list[Embedding]
    model: str
    version: str
    engine: str
    usage: dict[str, int]
    errors: list[FailedImage] | UnsetType = UNSET


class SearchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Exactly one of image, id, code and embedding.

    What `/v1/embeddings` answered may be sent as it came: `embedding` as a list or as base64, with
    `version` and `engine`.
    """

    image: Annotated[msgspec.Raw, Meta(extra_json_schema=PICTURE)] | UnsetType = UNSET
    id: Annotated[str | None, Meta(description="Of a row of the index.")] = None
    code: Annotated[bytes | None, Meta(description="A packed code; needs `version`.")] = None
    embedding: Annotated[
        list[float] | bytes | None,
        Meta(description="As /v1/embeddings answered it; needs `version`."),
    ] = None
    version: str | None = None
    engine: Annotated[
        str | None,
        Meta(description="That computed code or embedding; another than the index's is warned of."),
    ] = None
    k: Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MAX_K})] = 10
    where: Annotated[
        str | None,
        Meta(description="A condition on metadata, such as price < 20 and name == 'a'."),
    ] = None
    order: Annotated[
        Literal["code", "asymmetric", "float"],
        Meta(
            description="By differing bits; by the cosine of the vector with the nearest codes; "
            "by its cosine with every stored embedding."
        ),
    ] = "code"
    group: Annotated[
        bool, Meta(description="Rows of one code are one hit, the others its `same`.")
    ] = False
    model: Model = MODEL


class Row(msgspec.Struct):
    """A row of the index."""

    id: str
    title: str
    metadata: dict[str, Any]
    picture: Annotated[str | UnsetType, Meta(description="Its address, where there is a page.")] = (
        UNSET
    )


class Hit(Row, kw_only=True):
    """A row that was found; with `group`, and those of the same code."""

    distance: Annotated[int, Meta(description="Differing bits.")]
    score: Annotated[float | UnsetType, Meta(description="Cosine, where `order` is by one.")] = (
        UNSET
    )
    code: bytes | UnsetType = UNSET
    same: "list[Hit] | UnsetType" = UNSET
    same_count: int | UnsetType = UNSET


class Query(msgspec.Struct):
    """What was searched with; a row says what a hit does."""

    code: bytes
    id: str | UnsetType = UNSET
    title: str | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    picture: str | UnsetType = UNSET


class Hits(msgspec.Struct, tag_field="object", tag="list"):
    """The nearest rows, nearest first."""

    query: Query
    data: list[Hit]
    chance: Chance | None
    version: str
    engine: str
    warning: Annotated[str | UnsetType, Meta(description="The engines differ.")] = UNSET


class Index(msgspec.Struct, tag_field="object", tag="index"):
    """Its rows, version and metadata."""

    rows: int
    kind: Literal["flat", "ivf", "hnsw"]
    dimensions: int
    version: str
    engine: str
    embeddings: Annotated[bool, Meta(description="Whether it stores them.")]
    names: Annotated[list[str], Meta(description="Of metadata, for `where`.")]
    chance: Chance | None
    recall: dict[str, Any] | UnsetType = UNSET


class ServedModel(msgspec.Struct, tag_field="object", tag="model"):
    """Its version, width and limits."""

    id: str
    created: int
    owned_by: str
    version: str
    engine: str
    compatible_with: Annotated[
        Sequence[str], Meta(description="Further versions whose codes its vectors may search.")
    ]
    dimensions: int
    code_bytes: int
    limits: dict[str, Any]


class ServedModels(msgspec.Struct, tag_field="object", tag="list"):
    """Versions, widths and limits."""

    data: list[ServedModel]


class Status(msgspec.Struct):
    """How this process is."""

    status: str


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


def rows(answer: Embedded, indices: Sequence[int], encoding: Encoding) -> list[Embedding]:
    """OpenAI's `data`: float vectors as lists or base64 of little-endian float32, codes as base64.

    Args:
        answer: vectors of N pictures.
        indices: for each row its index in the caller's list.
        encoding: how float vectors are written.
    """
    return [
        Embedding(
            index,
            [] if answer.embedding is None else _vector(answer.embedding[row], encoding),
            UNSET
            if answer.code is None
            else pybase64.b64encode_as_string(answer.code[row].tobytes()),
        )
        for row, index in enumerate(indices)
    ]


def _vector(vector: NDArray[np.float32], encoding: Encoding) -> list[float] | str:
    if encoding == "base64":
        return pybase64.b64encode_as_string(vector.astype("<f4", copy=False).tobytes())
    return list(vector.tolist())
