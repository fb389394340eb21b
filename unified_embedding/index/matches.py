"""What a search returns, and the snapshot it was made from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import CodeIndexError
from unified_embedding.index.checksums import REMEDY
from unified_embedding.index.kernel import NO_ROW, Nearest, exact, one_thread, ordered
from unified_embedding.index.records import ID, Record
from unified_embedding.index.segments import Part
from unified_embedding.index.where import Where

Rerank = Literal["asymmetric", "embedding"]

_BLOCK_ROWS: Final = 16_384
_CODE_ROWS: Final = 65_536


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        id: the row's id.
        distance: Hamming distance of the codes in bits.
        score: similarity in [-1, 1] after re-ranking, higher is nearer; None without.
        metadata: the row's other columns.
    """

    id: str
    distance: int
    score: float | None
    metadata: Record


@dataclass(frozen=True)
class Snapshot:
    """Base and tail as one search sees them. Row numbers run through the base, then the tail.

    Attributes:
        base, tail: the segments.
        chosen: living rows that a condition left, ascending int64 [M]; None without a condition.
    """

    base: Part
    tail: Part
    chosen: NDArray[np.int64] | None = None

    def where(self, text: str) -> "Snapshot":
        """Only the rows whose metadata fulfil a condition. Raises CodeIndexError; see `where`."""
        parts = (self.base, self.tail)
        masks = Where(text).masks([part.records for part in parts])
        kept = [part.alive & mask[: len(part)] for part, mask in zip(parts, masks, strict=True)]
        return replace(self, chosen=np.flatnonzero(np.concatenate(kept)))

    @property
    def living(self) -> int:
        """Rows that are not deleted."""
        return len(self.base) - self.base.dead + len(self.tail) - self.tail.dead

    def nearest(self, query: NDArray[np.uint8], k: int, approximate: bool = True) -> Nearest:
        """The k nearest living rows of each query [N, B], ties by insertion order.

        With `approximate=False` the base is searched exactly, whatever its kind; so it is under
        a condition.
        """
        with one_thread():
            if self.chosen is not None:
                return self._nearest_chosen(query, k, self.chosen)
            found = _living(self.base, query, k, approximate)
            if len(self.tail):
                other = _living(self.tail, query, k, approximate)
                shifted = np.where(other.rows < 0, NO_ROW, other.rows + len(self.base))
                found = Nearest(
                    np.concatenate((found.distances, other.distances), axis=1),
                    np.concatenate((found.rows, shifted), axis=1),
                )
                found = ordered(found, k)
        return found

    def rows(self) -> NDArray[np.int64]:
        """The rows that may be found, ascending."""
        if self.chosen is not None:
            return self.chosen
        return np.flatnonzero(np.concatenate((self.base.alive, self.tail.alive)))

    def record(self, row: int) -> Record:
        """Metadata of a row, id included."""
        base = len(self.base)
        return self.base.records[row] if row < base else self.tail.records[row - base]

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Codes uint8 [n, B] of rows [n]."""
        return self._rows(rows, self.base.codes, self.tail.codes)

    def embeddings(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored embeddings float32 [n, D] of rows [n]; the index must hold them."""
        base, tail = self.base.embeddings, self.tail.embeddings
        if base is None or tail is None:
            raise TypeError("this snapshot holds no embeddings")
        return self._rows(rows, base, tail).astype(np.float32)

    def _nearest_chosen(
        self, query: NDArray[np.uint8], k: int, chosen: NDArray[np.int64]
    ) -> Nearest:
        k = min(k, len(chosen))
        shape = (len(query), 0)
        best = Nearest(np.empty(shape, np.int32), np.empty(shape, np.int64))
        for first in range(0, len(chosen) if k else 0, _CODE_ROWS):
            rows = chosen[first : first + _CODE_ROWS]
            found = exact(query, self.codes(rows), min(k, len(rows)))
            merged = Nearest(
                np.concatenate((best.distances, found.distances), axis=1),
                np.concatenate((best.rows, rows[found.rows]), axis=1),
            )
            best = ordered(merged, k)
        return best

    def _rows(
        self, rows: NDArray[np.int64], base: NDArray[Any], tail: NDArray[Any]
    ) -> NDArray[Any]:
        out = np.empty((len(rows), base.shape[1]), dtype=base.dtype)
        old = rows < len(base)
        out[old] = base[rows[old]]
        out[~old] = tail[rows[~old] - len(base)]
        return out


@dataclass(frozen=True)
class Matches:
    """The results of one search, best first. Metadata is read when a hit is asked for.

    Attributes:
        distances: Hamming distances in bits, int32 [N, k].
        rows: row numbers within the snapshot, int64 [N, k]; -1 where an approximate search
            found too few.
        scores: similarities float32 [N, k] when re-ranked, else None.
    """

    distances: NDArray[np.int32]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32] | None
    snapshot: Snapshot

    def __len__(self) -> int:
        return len(self.rows)

    def hits(self, query: int) -> list[Hit]:
        """The hits of one query, best first."""
        hits = []
        for place, row in enumerate(self.rows[query].tolist()):
            if row == NO_ROW:
                continue
            metadata = dict(self.snapshot.record(row))
            score = None if self.scores is None else float(self.scores[query, place])
            distance = int(self.distances[query, place])
            hits.append(Hit(metadata.pop(ID), distance, score, metadata))
        return hits

    def ids(self, query: int) -> list[str]:
        """The ids of one query's hits, best first."""
        return [hit.id for hit in self.hits(query)]


def rescored(
    snapshot: Snapshot, found: Nearest, unit: NDArray[np.float32], rerank: Rerank, k: int
) -> Matches:
    """The best k of the candidates `found` by their similarity to the queries [N, D], of length 1.

    "asymmetric" is the cosine of the query with the candidate's signs, "embedding" the cosine
    with its stored embedding. Ties fall back to Hamming distance, then row.
    """
    similarity = _signs if rerank == "asymmetric" else _cosine
    scores = np.full(found.rows.shape, -np.inf, dtype=np.float32)
    for query, rows in enumerate(found.rows):
        there = rows >= 0
        scores[query, there] = similarity(snapshot, rows[there], unit[query])
    order = np.lexsort((found.rows, found.distances, -scores), axis=1)[:, :k]
    return Matches(
        np.take_along_axis(found.distances, order, axis=1),
        np.take_along_axis(found.rows, order, axis=1),
        np.take_along_axis(scores, order, axis=1),
        snapshot,
    )


class ByEmbedding(NamedTuple):
    """Rows int64 [N, k] by descending cosine float32 [N, k], then row."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def by_embedding(snapshot: Snapshot, unit: NDArray[np.float32], k: int) -> ByEmbedding:
    """The k living rows of highest cosine with each query [N, D] of length 1; reads every row."""
    living = snapshot.rows()
    best = ByEmbedding(np.empty((len(unit), 0), np.int64), np.empty((len(unit), 0), np.float32))
    for first in range(0, len(living), _BLOCK_ROWS):
        rows = living[first : first + _BLOCK_ROWS]
        scores = _cosine(snapshot, rows, unit.T).T
        all_rows = np.concatenate((best.rows, np.broadcast_to(rows, scores.shape)), axis=1)
        all_scores = np.concatenate((best.scores, scores), axis=1)
        order = np.lexsort((all_rows, -all_scores), axis=1)[:, :k]
        best = ByEmbedding(
            np.take_along_axis(all_rows, order, axis=1),
            np.take_along_axis(all_scores, order, axis=1),
        )
    return best


def _signs(
    snapshot: Snapshot, rows: NDArray[np.int64], unit: NDArray[np.float32]
) -> NDArray[np.float32]:
    bits = np.unpackbits(snapshot.codes(rows), axis=1).astype(np.float32)
    score: NDArray[np.float32] = (2 * bits @ unit - unit.sum()) / np.sqrt(len(unit))
    return score


def _cosine(
    snapshot: Snapshot, rows: NDArray[np.int64], unit: NDArray[np.float32]
) -> NDArray[np.float32]:
    stored = snapshot.embeddings(rows)
    norms = np.linalg.norm(stored, axis=1, keepdims=True)
    # A row of zeros, which older versions stored for values below float16, is like nothing.
    score: NDArray[np.float32] = (stored / np.where(norms > 0, norms, 1)) @ unit
    if not np.isfinite(score).all():
        raise CodeIndexError(f"a stored embedding is not finite: the index is damaged; {REMEDY}")
    return score


def _living(part: Part, query: NDArray[np.uint8], k: int, approximate: bool) -> Nearest:
    """The k nearest rows of one part that are not deleted.

    Deleted rows stay in the structures, so the search asks for more until enough live ones
    came back; a prefix of an ordered list, less its dead, is an ordered list of the living.
    """
    k = min(k, max(0, len(part) - part.dead))
    if not k or not len(query):
        shape = (len(query), k)
        return Nearest(np.empty(shape, np.int32), np.empty(shape, np.int64))
    accelerator = part.accelerator if approximate else None
    if accelerator is not None and accelerator.groups is not None:
        return accelerator.search_rows(query, k, part.alive)
    search = accelerator.search if accelerator is not None else _exact(part.codes)
    fetch = min(len(part), 2 * k if part.dead else k)
    while True:
        found = search(query, fetch)
        living = (found.rows >= 0) & part.alive[found.rows]
        exhausted = (found.rows < 0).any(axis=1) | (living.sum(axis=1) >= k)
        if fetch == len(part) or exhausted.all():
            break
        fetch = min(len(part), 4 * fetch)
    if living.all():
        return Nearest(found.distances[:, :k], found.rows[:, :k])
    return ordered(Nearest(found.distances, np.where(living, found.rows, NO_ROW)), k)


def _exact(codes: NDArray[np.uint8]) -> Callable[[NDArray[np.uint8], int], Nearest]:
    return lambda query, k: exact(query, codes, k)
