"""Take an index elsewhere: PostgreSQL with pgvector, or Parquet that Milvus' bulk import reads."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unified_embedding.index.code_index import CodeIndex
from unified_embedding.index.matches import Snapshot
from unified_embedding.index.records import ID, Record, facts, plain
from unified_embedding.paths import StrPath
from unified_embedding.whole_files import whole_file, write_whole

TABLE: Final = "images"
ROWS_PER_FILE: Final = 500_000
_BLOCK: Final = 4096
# PostgreSQL documentation, COPY, "Binary Format": signature, flags, length of the extension.
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_COPY_TRAILER: Final = struct.pack(">h", -1)
_JSONB_VERSION: Final = b"\x01"


def to_postgres(
    index: CodeIndex, folder: StrPath, rows_per_file: int = ROWS_PER_FILE
) -> list[Path]:
    """Write what psql loads: schema.sql, codes-*.copy (binary COPY), load.sql, hnsw.sql.

    A code becomes `bit(D)`, first dimension first, as both sides put the most significant bit
    first. Plain PostgreSQL (14 or newer) answers exactly by `bit_count(code # query)`; with
    pgvector (0.7 or newer) `code <~> query` does, through HNSW when hnsw.sql was run. Metadata
    are as `records.facts` tells them; a NUL in an id becomes U+FFFD, as PostgreSQL has none.

    Returns:
        The files, in the order of their use.
    """
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    header = index.header
    schema = f"""\
-- embedder {header.origin.version}, engine {header.origin.engine}
CREATE TABLE {TABLE} (
    row bigint NOT NULL,
    id text PRIMARY KEY,
    code bit({header.dim}) NOT NULL,
    metadata jsonb NOT NULL
);
COMMENT ON TABLE {TABLE} IS 'embedder {header.origin.version}, engine {header.origin.engine}';
"""
    hnsw = f"""\
-- Exact search needs no index:
--   SELECT id FROM {TABLE} ORDER BY bit_count(code # $1), row LIMIT 10;
-- pgvector 0.7 or newer: SELECT id FROM {TABLE} ORDER BY code <~> $1 LIMIT 10;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE INDEX ON {TABLE} USING hnsw (code bit_hamming_ops);
"""
    files = []
    for path, blocks in _files(index, folder, "codes-{:05d}.copy", rows_per_file):
        with whole_file(path) as temporary, temporary.open("wb") as file:
            file.write(_COPY_HEADER)
            for rows, codes, records in blocks:
                file.writelines(map(_copy_row, rows.tolist(), codes, records))
            file.write(_COPY_TRAILER)
        files.append(path)
    load = "".join(f"\\copy {TABLE} FROM '{path.name}' WITH (FORMAT binary)\n" for path in files)
    texts = {"schema.sql": schema, "load.sql": f"BEGIN;\n{load}COMMIT;\n", "hnsw.sql": hnsw}
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / "schema.sql", *files, folder / "load.sql", folder / "hnsw.sql"]


def to_milvus(index: CodeIndex, folder: StrPath, rows_per_file: int = ROWS_PER_FILE) -> list[Path]:
    """Write Parquet files for Milvus' bulk import.

    Columns: `id` VARCHAR (the primary key), `code` BINARY_VECTOR as list<uint8>, `metadata` JSON
    as text, and `embedding` FLOAT_VECTOR as list<float> where the index stores embeddings.

    Returns:
        The files.
    """
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    snapshot = index.snapshot()
    written = []
    for path, blocks in _files(index, folder, "codes-{:05d}.parquet", rows_per_file):
        with whole_file(path) as temporary:
            writer = None
            for rows, codes, records in blocks:
                table = _milvus_table(snapshot, index.header.embeddings, rows, codes, records)
                writer = writer or pq.ParquetWriter(temporary, table.schema)
                writer.write_table(table)
            if writer is not None:
                writer.close()
        written.append(path)
    return written


Block = tuple[NDArray[np.int64], NDArray[np.uint8], list[Record]]


def _files(
    index: CodeIndex, folder: Path, pattern: str, rows_per_file: int
) -> Iterator[tuple[Path, Iterator[Block]]]:
    snapshot = index.snapshot()
    living = np.flatnonzero(np.concatenate((snapshot.base.alive, snapshot.tail.alive)))
    for number, first in enumerate(range(0, len(living), rows_per_file)):
        rows = living[first : first + rows_per_file]
        yield folder / pattern.format(number), _blocks(snapshot, rows)


def _blocks(snapshot: Snapshot, rows: NDArray[np.int64]) -> Iterator[Block]:
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        yield block, snapshot.codes(block), [snapshot.record(row) for row in block.tolist()]


def _copy_row(row: int, code: NDArray[np.uint8], record: Record) -> bytes:
    facts = _facts(record).encode()
    fields = (
        struct.pack(">q", row),
        plain(record[ID]).encode(),
        struct.pack(">i", 8 * len(code)) + code.tobytes(),
        _JSONB_VERSION + facts,
    )
    parts = [struct.pack(">h", len(fields))]
    for field in fields:
        parts += [struct.pack(">i", len(field)), field]
    return b"".join(parts)


def _milvus_table(
    snapshot: Snapshot,
    embeddings: bool,
    rows: NDArray[np.int64],
    codes: NDArray[np.uint8],
    records: list[Record],
) -> pa.Table:
    columns: dict[str, Any] = {
        "id": pa.array([record[ID] for record in records], pa.string()),
        "code": _lists(codes, pa.uint8()),
        "metadata": pa.array([_facts(record) for record in records], pa.string()),
    }
    if embeddings:
        columns["embedding"] = _lists(snapshot.embeddings(rows), pa.float32())
    return pa.table(columns)


def _lists(values: NDArray[Any], kind: Any) -> Any:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel(), kind))


def _facts(record: Record) -> str:
    """The metadata as a JSON object that the strictest reader takes."""
    return json.dumps(facts(record), ensure_ascii=False, allow_nan=False)
