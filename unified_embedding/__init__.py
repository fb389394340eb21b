"""The served unified embedder: pictures to embeddings and packed sign-bit codes."""

from unified_embedding.codes import asymmetric, hamming, pack, unpack
from unified_embedding.errors import CodeError, EmbeddingError
from unified_embedding.image import Box, Limits, Preprocessing, load_pixels
from unified_embedding.spec import EmbedderSpec

__version__ = "0.1.0"
__all__ = [
    "Box",
    "CodeError",
    "EmbedderSpec",
    "EmbeddingError",
    "Limits",
    "Preprocessing",
    "asymmetric",
    "hamming",
    "load_pixels",
    "pack",
    "unpack",
]
