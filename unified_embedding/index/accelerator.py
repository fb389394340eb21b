"""The approximate structures: FAISS' binary IVF and HNSW over the rows of a base."""

from pathlib import Path
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import CodeIndexError
from unified_embedding.index.header import Settings
from unified_embedding.index.kernel import Nearest, ordered

_SEED: Final = 1234
# Rows that k-means sees per cluster: below 39 FAISS warns, above the centroids hardly move.
_TRAINING_ROWS: Final = 40
_ITERATIONS: Final = 10
_BLOCK: Final = 65_536

Structure = faiss.IndexBinaryIVF | faiss.IndexBinaryHNSW


class Accelerator:
    """A FAISS index over row numbers 0..rows-1. Searched from many threads, never changed."""

    def __init__(self, index: Structure, settings: Settings) -> None:
        self._index = index
        if isinstance(index, faiss.IndexBinaryIVF):
            index.nprobe = settings.probes(index.nlist)
            lists = faiss.downcast_InvertedLists(index.invlists)
            if isinstance(lists, faiss.OnDiskInvertedLists):
                lists.prefetch_nthread = 0  # It would start its threads anew for every query.
        else:
            index.hnsw.efSearch = settings.ef_search

    @classmethod
    def build(cls, codes: NDArray[np.uint8], settings: Settings) -> "Accelerator":
        """Build over codes [M, B], M > 0."""
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(settings.threads)
        try:
            index = _ivf(codes, settings) if settings.kind == "ivf" else _hnsw(codes, settings)
            for start in range(0, len(codes), _BLOCK):
                index.add(np.ascontiguousarray(codes[start : start + _BLOCK]))
        finally:
            faiss.omp_set_num_threads(before)
        return cls(index, settings)

    @classmethod
    def read(cls, path: Path, settings: Settings) -> "Accelerator":
        """Read what `write` wrote, memory-mapped where FAISS can. Raises CodeIndexError."""
        flag = faiss.IO_FLAG_MMAP if settings.kind == "ivf" else faiss.IO_FLAG_MMAP_IFC
        try:
            index = faiss.read_index_binary(str(path), flag)
        except RuntimeError as error:
            raise CodeIndexError(f"{path} is damaged ({error}); build the index again") from error
        if not isinstance(index, Structure):
            raise CodeIndexError(f"{path} holds neither IVF nor HNSW; build the index again")
        return cls(index, settings)

    def write(self, path: Path) -> None:
        """Write the structure to one file."""
        faiss.write_index_binary(self._index, str(path))

    @property
    def rows(self) -> int:
        """Codes in the structure."""
        return self._index.ntotal

    def search(self, query: NDArray[np.uint8], k: int) -> Nearest:
        """About the k nearest rows of each query [N, B], by distance, then row."""
        distances, rows = self._index.search(np.ascontiguousarray(query), k)
        return ordered(Nearest(distances, rows), k)


def _ivf(codes: NDArray[np.uint8], settings: Settings) -> faiss.IndexBinaryIVF:
    rows, bits = len(codes), codes.shape[1] * 8
    lists = max(1, min(settings.clusters(rows), rows // _TRAINING_ROWS))
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, lists)
    index.cp.seed = _SEED
    index.cp.niter = _ITERATIONS
    training = min(rows, lists * _TRAINING_ROWS)
    sample = np.random.default_rng(_SEED).choice(rows, training, replace=False)
    index.train(np.ascontiguousarray(codes[np.sort(sample)]))
    return index


def _hnsw(codes: NDArray[np.uint8], settings: Settings) -> faiss.IndexBinaryHNSW:
    index = faiss.IndexBinaryHNSW(codes.shape[1] * 8, settings.links)
    index.hnsw.efConstruction = settings.ef_construction
    return index
