"""What enters an index is checked here, once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unified_embedding.codes import code_bytes
from unified_embedding.errors import CodeIndexError, IndexMismatch, shown
from unified_embedding.index.header import Header
from unified_embedding.index.matches import Rerank

Metadata: TypeAlias = Mapping[str, Sequence[Any]] | pa.Table | None


@dataclass(frozen=True)
class Batch:
    """Rows for a bulk build.

    Attributes:
        ids: n different texts.
        codes: uint8 [n, D / 8].
        metadata: columns of n values each, or None.
        embeddings: float [n, D] to store as float16, or None.
    """

    ids: Sequence[str]
    codes: NDArray[np.uint8]
    metadata: Metadata = None
    embeddings: NDArray[np.floating[Any]] | None = None


def check_codes(header: Header, codes: NDArray[np.uint8]) -> None:
    """Raise CodeIndexError or IndexMismatch unless `codes` are uint8 [N, D / 8]."""
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise CodeIndexError(f"expected codes uint8 [N, B], got {codes.dtype} {codes.shape}")
    if codes.shape[1] != code_bytes(header.dim):
        raise IndexMismatch(
            f"codes of {codes.shape[1]} bytes do not fit an index of {code_bytes(header.dim)}-byte "
            f"codes (dimension {header.dim})"
        )


def check_rows(header: Header, batch: Batch) -> NDArray[np.float16] | None:
    """Check a batch; returns its embeddings as float16 [n, D], or None. Raises CodeIndexError."""
    check_codes(header, batch.codes)
    if len(batch.ids) != len(batch.codes):
        raise CodeIndexError(f"{len(batch.ids)} ids for {len(batch.codes)} codes")
    given = batch.embeddings
    if (given is not None) != header.embeddings:
        wants = "stores embeddings: pass them" if header.embeddings else "stores no embeddings"
        raise CodeIndexError(f"this index {wants}")
    if given is None:
        return None
    _check_floats(header, len(batch.codes), given)
    if np.abs(given).max(initial=0) > np.finfo(np.float16).max:
        raise CodeIndexError("an embedding has a value beyond float16, in which it is stored")
    stored = given.astype(np.float16)
    if not stored.any(axis=1).all():
        raise CodeIndexError("an embedding is all zero in float16, in which it is stored")
    return stored


def _check_floats(header: Header, count: int, floats: NDArray[Any]) -> None:
    if floats.shape != (count, header.dim) or not np.issubdtype(floats.dtype, np.floating):
        raise IndexMismatch(
            f"expected embeddings float [{count}, {header.dim}], got {floats.dtype} {floats.shape}"
        )
    if not np.isfinite(floats).all() or not floats.any(axis=1).all():
        raise CodeIndexError("an embedding holds NaN or infinity, or is all zero")


def check_rerank(
    header: Header, count: int, embedding: NDArray[Any] | None, rerank: Rerank
) -> NDArray[np.float32]:
    """Check that re-ranking is possible; returns the queries float32 [N, D], each of length 1."""
    if rerank not in ("asymmetric", "embedding"):
        raise CodeIndexError(f"rerank {shown(rerank)} is neither 'asymmetric' nor 'embedding'")
    if rerank == "embedding" and not header.embeddings:
        raise CodeIndexError(
            "this index stores no embeddings; re-rank by 'asymmetric', or build it with them"
        )
    if embedding is None:
        raise CodeIndexError(f"re-ranking by {rerank!r} needs the query's embedding")
    _check_floats(header, count, embedding)
    # Only the direction counts. Scaled to 1 first, as squares of 1e-42 or 1e300 have no double.
    wide = embedding.astype(np.float64)
    wide /= np.abs(wide).max(axis=1, keepdims=True)
    unit: NDArray[np.float32] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit.astype(np.float32)
