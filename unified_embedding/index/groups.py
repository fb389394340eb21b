"""Rows of equal code. A neighbour graph holds each code once: many copies of one code link to
nothing but each other, and a search that enters them never leaves, or never finds them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.index.kernel import FAR, NO_ROW, Nearest, ordered

_BLOCK: Final = 65_536
_SCAN: Final = 4096
# Odd 64-bit constants: the finalizer of MurmurHash3 (A. Appleby, public domain).
_ODD: Final = np.uint64(0xFF51AFD7ED558CCD)
_FOLD: Final = np.uint64(33)


@dataclass(frozen=True)
class Groups:
    """U groups of M rows, in the order of their first rows.

    Attributes:
        rows: every row once, group by group, ascending within one; int64 [M].
        starts: where each group begins in `rows`, and M at the end; int64 [U + 1].
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, codes: NDArray[np.uint8]) -> "Groups":
        """The rows of codes [M, B] by equal code, M > 0. Codes may be mapped; 16 bytes a row."""
        hashes = np.concatenate(
            [_hashes(codes[first : first + _BLOCK]) for first in range(0, len(codes), _BLOCK)]
        )
        order = np.argsort(hashes, kind="stable")
        begins = np.ones(len(codes), dtype=np.bool_)
        # Equal hashes are neighbours now. Codes of one hash that differ, should they ever occur,
        # begin a group again: a code in two groups is searched twice, and nothing is lost.
        same = 1 + np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        for first in range(0, len(same), _BLOCK):
            at = same[first : first + _BLOCK]
            begins[at] = (codes[order[at]] != codes[order[at - 1]]).any(axis=1)
        starts = np.append(np.flatnonzero(begins), len(codes))
        by_first = np.argsort(order[starts[:-1]])
        lengths = np.diff(starts)[by_first]
        new_starts = np.append(0, np.cumsum(lengths))
        gather = np.repeat(starts[:-1][by_first] - new_starts[:-1], lengths) + np.arange(len(codes))
        return cls(order[gather], new_starts)

    @property
    def first(self) -> NDArray[np.int64]:
        """The first row of each group, int64 [U]."""
        first: NDArray[np.int64] = self.rows[self.starts[:-1]]
        return first

    def expand(self, found: Nearest, k: int, alive: NDArray[np.bool_]) -> Nearest:
        """The k nearest rows of the groups `found` that `alive` [M] marks; misses last.

        By distance, then row.
        """
        distances = np.full((len(found.rows), k), FAR, dtype=np.int32)
        rows = np.full((len(found.rows), k), NO_ROW, dtype=np.int64)
        for query, (near, groups) in enumerate(
            zip(found.distances.tolist(), found.rows.tolist(), strict=True)
        ):
            members: list[NDArray[np.int64]] = []
            far: list[int] = []
            count = 0
            for distance, group in zip(near, groups, strict=True):
                # Groups at the distance of the last place may hold earlier rows.
                if group == NO_ROW or (count >= k and distance > far[-1]):
                    break
                members.append(self._members(group, k, alive))
                far.append(distance)
                count += len(members[-1])
            if members:
                all_rows = np.concatenate(members)
                all_far = np.repeat(far, [len(one) for one in members])
                order = np.lexsort((all_rows, all_far))[:k]
                rows[query, : len(order)] = all_rows[order]
                distances[query, : len(order)] = all_far[order]
        return ordered(Nearest(distances, rows), k)

    def _members(self, group: int, k: int, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The first k living rows of a group."""
        members = self.rows[:0]
        end = self.starts[group + 1]
        for first in range(self.starts[group], end, max(k, _SCAN)):
            rows = self.rows[first : min(first + max(k, _SCAN), end)]
            members = np.concatenate((members, rows[alive[rows]]))[:k]
            if len(members) == k:
                break
        return members


def _hashes(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    hashes = np.zeros(len(codes), dtype=np.uint64)
    for word in np.ascontiguousarray(padded.T.reshape(-1, 8, len(codes)).transpose(0, 2, 1)):
        hashes = (hashes ^ word.view(np.uint64)[:, 0]) * _ODD
        hashes ^= hashes >> _FOLD
    return hashes
