"""Sign-bit codes: packing, Hamming distance and the asymmetric score.

The bit rule (Pinterest KDD 2019, section on binarization; the companion code of
arXiv 1811.12649): bit d is 1 where ``embedding[d] > 0``, most significant bit first,
as `numpy.packbits` packs them. Vendors call this layout "ubinary".
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import CodeError

BIT_RULE: Final = "embedding > 0, packed most significant bit first"

_POPCOUNT: Final = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)
# Rows of the (queries x codes x words) block that `hamming` holds at once.
_BLOCK_WORDS: Final = 1 << 24


def code_bytes(dim: int) -> int:
    """Bytes of one code of a `dim`-dimensional embedding. Raises CodeError unless dim % 8 == 0."""
    if dim <= 0 or dim % 8:
        raise CodeError(f"dimension {dim} has no packed code: it must be a positive multiple of 8")
    return dim // 8


def pack(embedding: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Pack float embeddings [N, D] into codes uint8 [N, D / 8].

    Raises:
        CodeError: not two-dimensional, not float, D not a multiple of 8, or a value
            that is NaN or infinite (a sign bit would hide it).
    """
    if embedding.ndim != 2 or not np.issubdtype(embedding.dtype, np.floating):
        raise CodeError(
            f"expected float embeddings [N, D], got {embedding.dtype} {embedding.shape}"
        )
    code_bytes(embedding.shape[1])
    finite = np.isfinite(embedding).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise CodeError(f"embedding row {row} holds NaN or infinity; it has no code")
    return np.packbits(embedding > 0, axis=1)


def unpack(code: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Unpack codes uint8 [N, B] into bits bool [N, 8 * B]."""
    _check_codes(code)
    return np.unpackbits(code, axis=1).astype(np.bool_)


def hamming(query: NDArray[np.uint8], gallery: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Number of differing bits, int32 [N, M], between codes uint8 [N, B] and [M, B]."""
    _check_codes(query)
    _check_codes(gallery)
    if query.shape[1] != gallery.shape[1]:
        raise CodeError(
            f"codes of {query.shape[1]} and {gallery.shape[1]} bytes cannot be compared: "
            "they come from embedders of different width"
        )
    left, right = _words(query), _words(gallery)
    out = np.empty((len(left), len(right)), dtype=np.int32)
    step = max(1, _BLOCK_WORDS // max(1, right.size))
    for start in range(0, len(left), step):
        block = left[start : start + step, None, :] ^ right[None, :, :]
        out[start : start + step] = _POPCOUNT[block].sum(axis=2, dtype=np.int32)
    return out


def asymmetric(query: NDArray[np.floating[Any]], gallery: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score float queries [N, D] against stored codes [M, D / 8]; float32 [N, M], higher is nearer.

    The score is the dot product of the query with the code read as signs (+1 where the
    bit is set, else -1): the gallery costs D / 8 bytes an image, the query loses nothing.
    """
    _check_codes(gallery)
    if query.ndim != 2 or query.shape[1] != gallery.shape[1] * 8:
        raise CodeError(
            f"query {query.shape} does not fit codes of {gallery.shape[1] * 8} dimensions"
        )
    signs = unpack(gallery).astype(np.float32) * 2 - 1
    score: NDArray[np.float32] = query.astype(np.float32) @ signs.T
    return score


def _check_codes(code: NDArray[np.uint8]) -> None:
    if code.ndim != 2 or code.dtype != np.uint8:
        # A silent cast would turn e.g. int8 "binary" codes (offset by 128) into other bits.
        raise CodeError(f"expected packed codes uint8 [N, B], got {code.dtype} {code.shape}")


def _words(code: NDArray[np.uint8]) -> NDArray[np.uint16]:
    if code.shape[1] % 2:
        code = np.pad(code, ((0, 0), (0, 1)))
    return np.ascontiguousarray(code).view(np.uint16)
