"""Whether a new index may take the place of the one that is searched, by labelled queries."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.client import EmbedderClient
from unified_embedding.errors import InputError, RequestRejected, shown
from unified_embedding.index import CodeIndex
from unified_embedding.retrieval import Interval, bootstrap

# If none of n fails, up to 3 / n may fail in truth, at 95 % (Hanley and Lippman-Hand, "If nothing
# goes wrong, is everything all right?", JAMA 1983). A bootstrap does not see what did not happen.
_RULE_OF_THREE: Final = 300.0
# Pictures that are in memory at once.
_CHUNK: Final = 64


@dataclass(frozen=True)
class Query:
    """A labelled query.

    Attributes:
        picture: the file to search with.
        right: ids of rows that are right answers.
        cluster: queries that succeed or fail together share one, as photographs of one product.
    """

    picture: Path
    right: frozenset[str]
    cluster: str


@dataclass(frozen=True)
class Verdict:
    """What the gate found. Recalls are percent of the queries.

    Attributes:
        k: hits among which a right answer counts.
        queries, clusters: how many.
        old, new: recall@k of each index with its own embedder.
        change: the paired difference new - old, query by query.
        margin: points of recall that may be lost.
        lacking: ids of the old index that the new one has not.
    """

    k: int
    queries: int
    clusters: int
    old: Interval
    new: Interval
    change: Interval
    margin: float
    lacking: list[str]

    @property
    def problems(self) -> list[str]:
        """Why the new index is refused; empty when it may take over."""
        found = []
        needed = math.ceil(_RULE_OF_THREE / self.margin)
        if self.clusters < needed:
            found.append(
                f"{self.clusters:,} clusters of queries cannot exclude a loss of {self.margin:g} "
                f"points, however they come out: label {needed:,}"
            )
        if self.change.low < -self.margin:
            more = "" if self.change.high < 0 else "; more labelled queries would tell more"
            found.append(
                f"recall@{self.k} may be lower by {-self.change.low:.1f} points, of which "
                f"{self.margin:g} may be lost{more}"
            )
        if self.lacking:
            found.append(
                f"{len(self.lacking):,} pictures of the old index are not in the new one, such as "
                f"{shown(self.lacking[0])}: back-fill and add them"
            )
        return found


def read_queries(file: Path) -> list[Query]:
    """Read a CSV file of labelled queries.

    Columns: `image`, a picture relative to the file; `id`, a row that is a right answer, further
    lines for further ones; `cluster`, where queries belong together.

    Raises:
        InputError: it cannot be read, holds none, or a line is wrong, which is named.
    """
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            lines = list(csv.DictReader(opened))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the queries {file} cannot be read ({error})") from error
    right: dict[str, set[str]] = {}
    clusters: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        image, name = line.get("image") or "", line.get("id") or ""
        if not image or not name:
            raise InputError(f"{file} line {number}: give a value for image and for id")
        if not (file.parent / image).is_file():
            raise InputError(f"{file} line {number}: there is no picture {shown(image)}")
        right.setdefault(image, set()).add(name)
        cluster = line.get("cluster") or image
        if clusters.setdefault(image, cluster) != cluster:
            raise InputError(f"{file} line {number}: {shown(image)} is in two clusters")
    if not right:
        raise InputError(f"{file} holds no query; it needs a line of column names and one for each")
    return [
        Query(file.parent / image, frozenset(ids), clusters[image]) for image, ids in right.items()
    ]


def compare(
    old: tuple[CodeIndex, EmbedderClient],
    new: tuple[CodeIndex, EmbedderClient],
    queries: Sequence[Query],
    k: int,
    margin: float,
) -> Verdict:
    """Search both indexes with every query, each through its own embedder.

    Raises:
        ClientError: a server did not answer.
        IndexMismatch: an embedder may not search its index.
        InputError: a picture cannot be embedded, or a right answer is in neither index.
    """
    named = sorted({name for query in queries for name in query.right})
    nowhere = new[0].lacks(old[0].lacks(named))
    if nowhere:
        raise InputError(
            f"{len(nowhere):,} right answers of the queries are in neither index, such as "
            f"{shown(nowhere[0])}: give ids as the index has them"
        )
    before, after = (100 * _found(*side, queries, k) for side in (old, new))
    clusters = [query.cluster for query in queries]
    return Verdict(
        k=k,
        queries=len(queries),
        clusters=len(set(clusters)),
        old=bootstrap(before, clusters),
        new=bootstrap(after, clusters),
        change=bootstrap(after - before, clusters),
        margin=margin,
        lacking=[name for block in old[0].ids() for name in new[0].lacks(block)],
    )


def _found(
    index: CodeIndex, client: EmbedderClient, queries: Sequence[Query], k: int
) -> NDArray[np.float64]:
    """Whether a right answer is among the first k hits of each query, as a user sees them."""
    found = []
    for first in range(0, len(queries), _CHUNK):
        chunk = queries[first : first + _CHUNK]
        try:
            answer = client.embed(
                [query.picture.read_bytes() for query in chunk], outputs=("code",)
            )
        except RequestRejected as error:
            where = "" if error.row is None else f"{chunk[error.row].picture}: "
            raise InputError(f"a query cannot be embedded: {where}{error.reason}") from error
        assert answer.code is not None  # it was asked for
        matches = index.search(answer.code, answer.origin, k=k)
        found += [not query.right.isdisjoint(matches.ids(row)) for row, query in enumerate(chunk)]
    return np.array(found, dtype=np.float64)
