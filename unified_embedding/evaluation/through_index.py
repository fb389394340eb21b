"""A test set on the way that users take: gallery by back-fill, index, queries by the server."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.codes import pack
from unified_embedding.errors import DataError
from unified_embedding.evaluation.embedders import ServedEmbedder
from unified_embedding.protocols.held_out import HeldOut
from unified_embedding.protocols.measure import Measurement, measure_by
from unified_embedding.protocols.tasks import Task
from unified_embedding.retrieval import Comparison
from unified_embedding.serving.local_server import run

if TYPE_CHECKING:
    from unified_embedding.index import CodeIndex

BACKFILL: Final = "backfill:"
_BATCH: Final = 512


def measure_through_index(
    pictures: HeldOut, tasks: Sequence[Task], embedder: ServedEmbedder, url: str
) -> Measurement:
    """Back-fill the gallery with float16 embeddings, index it, and search it with every query.

    The gallery is the union of what the tasks search; a search counts those of its own gallery.

    Raises:
        DataError: a program is missing or failed, or the corpus lacks a picture.
        ClientError: the server does not answer.
    """
    searches = [search for task in tasks for search in task.searches]
    gallery = np.unique(np.concatenate([search.gallery for search in searches]))
    queries = np.unique(np.concatenate([search.queries for search in searches]))
    parts = [
        embedder.embed([pictures.read(int(row)) for row in queries[start : start + _BATCH]])
        for start in range(0, len(queries), _BATCH)
    ]
    with tempfile.TemporaryDirectory() as folder:
        index = _index(pictures, gallery, Path(folder), url)
        by_index = _Search(index, gallery, queries, np.concatenate(parts), embedder.facts)
        return measure_by(pictures, by_index.similarity, tasks)


class _Search:
    """Similarities as the index states them, for rows of the test set."""

    def __init__(
        self,
        index: "CodeIndex",
        gallery: NDArray[np.int64],
        queries: NDArray[np.int64],
        vectors: NDArray[np.float32],
        facts: dict[str, Any],
    ) -> None:
        from unified_embedding.index import Origin

        self._index, self._queries, self._vectors = index, queries, vectors
        self._origin = Origin(facts["version"], facts["engine"])
        snapshot = index.snapshot()
        ids = [str(snapshot.record(row)["id"]) for row in range(len(index))]
        places = [int(name.rpartition("::")[2]) for name in ids]
        if sorted(places) != list(range(len(gallery))):
            raise DataError(f"the corpus holds {len(places)} of {len(gallery)} gallery pictures")
        self._gallery, self._places = gallery, np.array(places)
        self._found: dict[Comparison, NDArray[np.float32]] = {}

    def similarity(
        self, queries: NDArray[np.int64], gallery: NDArray[np.int64], comparison: Comparison
    ) -> NDArray[np.float32]:
        """See `measure.Similarity`."""
        if comparison not in self._found:
            starts = range(0, len(self._queries), _BATCH)
            parts = [self._search(self._vectors[s : s + _BATCH], comparison) for s in starts]
            self._found[comparison] = np.concatenate(parts)
        rows = np.searchsorted(self._queries, queries)
        columns = np.searchsorted(self._gallery, gallery)
        found: NDArray[np.float32] = self._found[comparison][np.ix_(rows, columns)]
        return found

    def _search(self, floats: NDArray[np.float32], comparison: Comparison) -> NDArray[np.float32]:
        """Similarity [Q, G] to the whole gallery: every query asks for every row, once."""
        codes, k = pack(floats), len(self._index)
        if comparison == "float":
            found = self._index.search_embeddings(floats, self._origin, k=k)
        elif comparison == "asymmetric":
            found = self._index.search(
                codes, self._origin, k=k, embedding=floats, rerank="asymmetric"
            )
        else:
            found = self._index.search(codes, self._origin, k=k)
        scores = -found.distances if found.scores is None else found.scores
        by_place = np.empty(scores.shape, dtype=np.float32)
        np.put_along_axis(by_place, self._places[found.rows], scores.astype(np.float32), axis=1)
        return by_place


def _index(pictures: HeldOut, gallery: NDArray[np.int64], folder: Path, url: str) -> "CodeIndex":
    import pyarrow as pa
    import pyarrow.parquet as pq

    from unified_embedding.index import CodeIndex

    source = folder / "gallery.parquet"
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(source, schema) as writer:
        for start in range(0, len(gallery), _BATCH):
            images = [pictures.read(int(row)) for row in gallery[start : start + _BATCH]]
            writer.write_table(pa.table({"image": images}, schema=schema))
    corpus, index = folder / "corpus", folder / "index"
    _run("backfill", str(source), "--embeddings", "--out", str(corpus), "--url", url)
    _run("index", "build", str(corpus), "--out", str(index))
    return CodeIndex.open(index)


def _run(program: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "unified_embedding.cli", program, *arguments]
    if code := run(command):
        raise DataError(f"{program} ended with exit code {code}; see above")
