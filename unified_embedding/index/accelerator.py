"""The approximate structures: FAISS' binary IVF and HNSW over the rows of a base."""

from pathlib import Path
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import CodeIndexError
from unified_embedding.index.checksums import REMEDY
from unified_embedding.index.groups import Groups
from unified_embedding.index.header import Settings
from unified_embedding.index.kernel import NO_ROW, Nearest, ordered

_SEED: Final = 1234
# Rows that k-means sees per cluster: below 39 FAISS warns, above the centroids hardly move.
_TRAINING_ROWS: Final = 40
_ITERATIONS: Final = 10
_BLOCK: Final = 65_536

Structure = faiss.IndexBinaryIVF | faiss.IndexBinaryHNSW


class Accelerator:
    """A FAISS index over row numbers 0..rows-1. Searched from many threads, never changed.

    Attributes:
        groups: the rows of each code in the structure, where it holds a code only once; else None.
    """

    def __init__(self, index: Structure, settings: Settings, groups: Groups | None = None) -> None:
        self._index = index
        self.groups = groups
        if isinstance(index, faiss.IndexBinaryIVF):
            index.nprobe = settings.probes(index.nlist)
            lists = faiss.downcast_InvertedLists(index.invlists)
            if isinstance(lists, faiss.OnDiskInvertedLists):
                lists.prefetch_nthread = 0  # It would start its threads anew for every query.
        else:
            index.hnsw.efSearch = settings.ef_search

    @classmethod
    def build(cls, codes: NDArray[np.uint8], settings: Settings) -> "Accelerator":
        """Build over codes [M, B], M > 0; "hnsw" over each different code once."""
        groups = Groups.of(codes) if settings.kind == "hnsw" else None
        if groups is not None and len(groups) == len(codes):
            groups = None
        chosen = None if groups is None else groups.first
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(settings.threads)
        try:
            index = _ivf(codes, settings) if settings.kind == "ivf" else _hnsw(codes, settings)
            for start in range(0, len(codes) if chosen is None else len(chosen), _BLOCK):
                block = slice(start, start + _BLOCK)
                rows = block if chosen is None else chosen[block]
                index.add(np.ascontiguousarray(codes[rows]))
        finally:
            faiss.omp_set_num_threads(before)
        return cls(index, settings, groups)

    @classmethod
    def read(cls, path: Path, settings: Settings) -> "Accelerator":
        """Read what `write` wrote, memory-mapped where FAISS can. Raises CodeIndexError."""
        flag = faiss.IO_FLAG_MMAP if settings.kind == "ivf" else faiss.IO_FLAG_MMAP_IFC
        try:
            index = faiss.read_index_binary(str(path), flag)
        except RuntimeError as error:
            raise CodeIndexError(f"{path} is damaged ({error}); {REMEDY}") from error
        if not isinstance(index, Structure):
            raise CodeIndexError(f"{path} holds neither IVF nor HNSW; {REMEDY}")
        return cls(index, settings)

    def write(self, path: Path) -> None:
        """Write the structure, without its groups, to one file. Raises OSError."""
        try:
            faiss.write_index_binary(self._index, str(path))
        except RuntimeError as error:
            raise OSError(f"FAISS cannot write {path}: {error}") from error

    @property
    def codes(self) -> int:
        """Codes in the structure: the rows, or with `groups` the different codes among them."""
        return int(self._index.ntotal)

    def search(self, query: NDArray[np.uint8], k: int) -> Nearest:
        """About the k nearest codes of the structure to each query [N, B], by distance, then row.

        Rows are those of the base; with `groups` they are numbers of groups.

        Raises:
            CodeIndexError: the structure names a row that it does not hold.
        """
        distances, rows = self._index.search(np.ascontiguousarray(query), k)
        if rows.size and not NO_ROW <= rows.min() <= rows.max() < self.codes:
            raise CodeIndexError(f"the approximate structure is damaged; {REMEDY}")
        return ordered(Nearest(distances, rows), k)

    def search_rows(self, query: NDArray[np.uint8], k: int, alive: NDArray[np.bool_]) -> Nearest:
        """About the k nearest rows that `alive` [M] marks; needs `groups`."""
        if self.groups is None:
            raise TypeError("this structure has no groups")
        wanted = min(k, self.codes)
        while True:
            found = self.search(query, wanted)
            nearest = self.groups.expand(found, k, alive)
            full = (nearest.rows != NO_ROW).all(axis=1) | (found.rows == NO_ROW).any(axis=1)
            if wanted == self.codes or full.all():
                return nearest
            wanted = min(self.codes, 4 * wanted)


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
