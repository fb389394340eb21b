"""One system of the index benchmark, in a process of its own: build, query, report as JSON.

Run by index_bench.py, so that the memory and the threads of one system do not show in another.
"""

import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from unified_embedding.index import Batch, CodeIndex, Origin, Settings
from unified_embedding.load.index_data import BLOCK, World

ORIGIN: Final = Origin("0" * 12, "made-up")
K: Final = 10
BUILD_THREADS: Final = 2

Codes = NDArray[np.uint8]
Search = Callable[[Codes], NDArray[np.int32]]
"""One query [1, B] to the distances of its K hits, int32 [K]."""


@dataclass
class SystemRow:
    """One line of the table; times in seconds, memory in bytes."""

    system: str
    what: str
    build_s: float
    p50_s: float
    p99_s: float
    recall: float
    memory: int


@dataclass(frozen=True)
class Job:
    """The corpus and where to work."""

    folder: Path
    rows: int
    dim: int
    seed: int

    def blocks(self) -> Iterator[Codes]:
        """Make the corpus, block by block."""
        world = World(self.rows, self.dim, self.seed)
        with (self.folder / "codes.u8").open("wb") as file:
            for first in range(0, self.rows, BLOCK):
                codes = world.block(first)
                codes.tofile(file)
                yield codes

    @property
    def codes(self) -> Codes:
        """The corpus, memory-mapped: uint8 [rows, dim / 8]."""
        shape = (self.rows, self.dim // 8)
        return np.memmap(self.folder / "codes.u8", dtype=np.uint8, mode="r", shape=shape)

    @property
    def queries(self) -> Codes:
        """Queries, uint8 [Q, dim / 8]."""
        return np.asarray(np.load(self.folder / "queries.npy"))

    @property
    def truth(self) -> NDArray[np.int32]:
        """Distance of the exact K-th hit of every query, int32 [Q]."""
        return np.asarray(np.load(self.folder / "truth.npy"))


def resident() -> int:
    """Resident memory of this process in bytes, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def measure(
    searches: dict[tuple[str, str], Search], job: Job, build_s: float, before: int
) -> list[SystemRow]:
    """Time the searches in turn, query by query, so that drift of the machine hits all alike."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in searches}
    found: dict[tuple[str, str], list[bool]] = {name: [] for name in searches}
    for query in job.queries[:10]:
        for search in searches.values():
            search(query[None])
    for row, query in enumerate(job.queries):
        for name, search in searches.items():
            start = time.perf_counter()
            distances = search(query[None])
            times[name].append(time.perf_counter() - start)
            # Rows that tie with the exact K-th hit are right answers too.
            found[name] += [bool(d <= job.truth[row]) for d in distances]
    memory = resident() - before
    return [
        SystemRow(
            *name,
            build_s,
            float(np.quantile(times[name], 0.5)),
            float(np.quantile(times[name], 0.99)),
            float(np.sum(found[name]) / (K * len(job.queries))),
            memory,
        )
        for name in searches
    ]


def exact(job: Job) -> list[SystemRow]:
    """Bare FAISS flat, our exact index, and ours with ids and metadata, query by query in turn."""
    before, start = resident(), time.perf_counter()
    bare_search = bare_flat(job)
    bare_s, bare_memory = time.perf_counter() - start, resident() - before
    ours_s = build_apart(job, Settings())
    before = resident()
    index = CodeIndex.open(job.folder / "flat")

    def with_metadata(query: Codes) -> NDArray[np.int32]:
        return np.array([hit.distance for hit in index.search(query, ORIGIN, k=K).hits(0)])

    rows = measure(
        {
            ("FAISS", "bare flat"): bare_search,
            ("ours", "exact"): searching(index),
            ("ours", "exact, metadata"): with_metadata,
        },
        job,
        ours_s,
        before,
    )
    rows[0].build_s, rows[0].memory = bare_s, bare_memory
    return rows


def bare_flat(job: Job) -> Search:
    """FAISS' exact search of the corpus, on the calling thread alone."""
    bare = faiss.IndexBinaryFlat(job.dim)
    for block in range(0, job.rows, BLOCK):
        bare.add(np.ascontiguousarray(job.codes[block : block + BLOCK]))

    def search(query: Codes) -> NDArray[np.int32]:
        faiss.omp_set_num_threads(1)
        return np.asarray(bare.search(query, K)[0][0])

    return search


def searching(index: CodeIndex) -> Search:
    """The search of an index of ours."""
    return lambda query: index.search(query, ORIGIN, k=K).distances[0]


def ivf(job: Job) -> list[SystemRow]:
    """Our index with FAISS' binary IVF."""
    return _approximate(job, Settings(kind="ivf", threads=BUILD_THREADS))


def hnsw(job: Job) -> list[SystemRow]:
    """Our index with FAISS' binary HNSW."""
    return _approximate(job, Settings(kind="hnsw", threads=BUILD_THREADS))


def usearch(job: Job) -> list[SystemRow]:
    """USearch HNSW on packed bits, with the same graph settings as ours."""
    from usearch.index import Index

    before, start = resident(), time.perf_counter()
    options = Settings()
    index = Index(
        ndim=job.dim,
        metric="hamming",
        dtype="b1",
        connectivity=options.links,
        expansion_add=options.ef_construction,
        expansion_search=options.ef_search,
    )
    for first in range(0, job.rows, BLOCK):
        block = np.ascontiguousarray(job.codes[first : first + BLOCK])
        index.add(np.arange(first, first + len(block)), block, threads=BUILD_THREADS)
    build_s = time.perf_counter() - start

    def search(query: Codes) -> NDArray[np.int32]:
        return np.asarray(index.search(query[0], K, threads=1).distances).astype(np.int32)

    return measure({("USearch", "HNSW"): search}, job, build_s, before)


def lancedb(job: Job) -> list[SystemRow]:
    """LanceDB on a local folder: flat, then IVF_FLAT with as many lists and probes as ours."""
    import lancedb as lance

    insert_s = _in_child(_lance_insert, job)
    before = resident()
    table = lance.connect(str(job.folder / "lance")).open_table("codes")
    probes = Settings().probes(Settings().clusters(job.rows))

    def search(query: Codes) -> NDArray[np.int32]:
        ask: Any = table.search(query[0], vector_column_name="code")
        found = (
            ask.distance_type("hamming")
            .nprobes(probes)
            .select(["row", "_distance"])
            .limit(K)
            .to_arrow()
        )
        return np.asarray(found["_distance"].to_numpy()).astype(np.int32)

    rows = measure({("LanceDB", "flat"): search}, job, insert_s, before)
    build_s = insert_s + _in_child(_lance_ivf, job)
    table = lance.connect(str(job.folder / "lance")).open_table("codes")
    return rows + measure({("LanceDB", "IVF_FLAT"): search}, job, build_s, before)


def _approximate(job: Job, settings: Settings) -> list[SystemRow]:
    build_s = build_apart(job, settings)
    before = resident()
    index = CodeIndex.open(job.folder / settings.kind)
    return measure({("ours", settings.kind): searching(index)}, job, build_s, before)


def build_apart(job: Job, settings: Settings) -> float:
    """Build our index in `job.folder`, in a process of its own; its seconds."""
    return _in_child(_build, job, settings)


def _in_child(work: Callable[..., None], *arguments: Any) -> float:
    """Do `work` in a process of its own and return its seconds: its memory is not the server's."""
    start = time.perf_counter()
    child = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{work.__name__} ended with exit status {child.exitcode}")
    return time.perf_counter() - start


def _build(job: Job, settings: Settings) -> None:
    world = World(job.rows, job.dim, job.seed)

    def batches() -> Iterator[Batch]:
        for first in range(0, job.rows, BLOCK):
            rows = range(first, min(first + BLOCK, job.rows))
            metadata = {
                "product": [f"product-{world.product(row)}" for row in rows],
                "path": [f"catalogue/{row // 1000:05d}/{row:09d}.jpg" for row in rows],
                "width": [640 + row % 7 for row in rows],
            }
            ids = [f"image-{row:09d}" for row in rows]
            yield Batch(ids, job.codes[rows.start : rows.stop], metadata)

    CodeIndex.build(job.folder / settings.kind, batches(), ORIGIN, job.dim, settings=settings)


def _lance_insert(job: Job) -> None:
    import lancedb as lance
    import pyarrow as pa

    width = job.dim // 8
    schema = pa.schema([("row", pa.int64()), ("code", pa.list_(pa.uint8(), width))])

    def batches() -> Iterator[Any]:
        for first in range(0, job.rows, BLOCK):
            block = np.ascontiguousarray(job.codes[first : first + BLOCK])
            packed = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), width)
            numbers = pa.array(np.arange(first, first + len(block)))
            yield pa.RecordBatch.from_arrays([numbers, packed], schema=schema)

    lance.connect(str(job.folder / "lance")).create_table("codes", batches(), schema=schema)


def _lance_ivf(job: Job) -> None:
    import lancedb as lance
    from lancedb.index import IvfFlat

    table = lance.connect(str(job.folder / "lance")).open_table("codes")
    config = IvfFlat(distance_type="hamming", num_partitions=Settings().clusters(job.rows))
    table.create_index("code", config=config)


SYSTEMS: Final = {
    "exact": exact,
    "ivf": ivf,
    "hnsw": hnsw,
    "usearch": usearch,
    "lancedb": lancedb,
}


def main() -> None:
    """index_systems.py SYSTEM FOLDER ROWS DIM SEED: print the rows as JSON."""
    system, folder, rows, dim, seed = sys.argv[1:]
    job = Job(Path(folder), int(rows), int(dim), int(seed))
    try:
        print(json.dumps([asdict(row) for row in SYSTEMS[system](job)]))
    finally:
        for name in (*SYSTEMS, "flat", "lance"):
            shutil.rmtree(job.folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
