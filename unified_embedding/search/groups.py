"""Hits without repetition: rows of equal code are one hit, and a row is no hit of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from unified_embedding.index import Hit, Matches

MOST_ROWS: Final = 1000
"""Rows looked through for k different codes."""


@dataclass
class Group:
    """Hits of one code, uint8 [D / 8] as bytes, best first."""

    code: bytes
    hits: list[Hit]


def grouped(find: Callable[[int], Matches], k: int, own: str | None = None) -> list[Group]:
    """The k nearest different codes among the first `MOST_ROWS` hits.

    Asks for more hits until the k-th code cannot have further rows among those not seen.

    Args:
        find: the nearest rows of one query, as many as it is told.
        k: different codes to find.
        own: id of the row that is searched from, which is no result.
    """
    wanted = k + 1
    while True:
        matches = find(wanted)
        hits = matches.hits(0)
        codes = matches.snapshot.codes(matches.rows[0][matches.rows[0] >= 0])
        found: dict[bytes, Group] = {}
        for hit, code in zip(hits, codes, strict=True):
            if hit.id != own:
                key = code.tobytes()
                found.setdefault(key, Group(key, [])).hits.append(hit)
        groups = list(found.values())[:k]
        whole = len(groups) == k and _rank(groups[-1].hits[0]) != _rank(hits[-1])
        if whole or len(hits) < wanted or wanted >= MOST_ROWS:
            return groups
        wanted = min(MOST_ROWS, 4 * wanted)


def _rank(hit: Hit) -> float:
    return hit.distance if hit.score is None else hit.score
