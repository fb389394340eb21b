"""The served unified embedder: pictures to embeddings and packed sign-bit codes.

>>> from unified_embedding import CodeIndex, EmbedderClient
>>> with EmbedderClient("127.0.0.1:8001") as client:
...     answer = client.embed([Path("chair.jpg").read_bytes()])
>>> CodeIndex.open("out/index").search(answer.code, answer.origin, k=10).hits(0)

The clients and the index are loaded when they are first named; each needs its extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from unified_embedding.codes import asymmetric, hamming, pack, unpack
from unified_embedding.errors import CodeError, EmbeddingError
from unified_embedding.image import Box, Limits, Preprocessing, load_pixels
from unified_embedding.origin import Origin
from unified_embedding.spec import EmbedderSpec

if TYPE_CHECKING:
    from unified_embedding.client import AsyncEmbedderClient, EmbedderClient
    from unified_embedding.index import CodeIndex

__version__ = "0.1.0"
__all__ = [
    "AsyncEmbedderClient",
    "Box",
    "CodeError",
    "CodeIndex",
    "EmbedderClient",
    "EmbedderSpec",
    "EmbeddingError",
    "Limits",
    "Origin",
    "Preprocessing",
    "asymmetric",
    "hamming",
    "load_pixels",
    "pack",
    "unpack",
]

_ROOMS: Final = {"AsyncEmbedderClient": "client", "CodeIndex": "index", "EmbedderClient": "client"}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
