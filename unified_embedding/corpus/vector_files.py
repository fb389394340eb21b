"""Files of vectors: one row per picture with id, embedding, code, version and engine.

| format | embedding | code |
|---|---|---|
| .parquet | fixed_size_list<float32>[D] | fixed_size_binary[D / 8] |
| .npz | float32 [N, D] | uint8 [N, D / 8] |
| .jsonl | list of D numbers | hexadecimal string |

Columns that were not asked for are absent. A file appears whole or not at all. An id that is no
UTF-8, a file name of another encoding, is written as `corpus.text.printable` spells it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unified_embedding.corpus.text import printable
from unified_embedding.whole_files import whole_file


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows of a file of vectors.

    Attributes:
        ids: str [N].
        embedding: float32 [N, D] or None.
        code: uint8 [N, D / 8] or None.
        version: str [N], the embedder's version.
        engine: str [N], id of the engine that computed the row.
    """

    ids: NDArray[np.str_]
    embedding: NDArray[np.float32] | None
    code: NDArray[np.uint8] | None
    version: NDArray[np.str_]
    engine: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.ids)


def write_rows(path: Path, blocks: Iterable[Rows]) -> None:
    """Write blocks of rows below one another in the format that `path` ends with.

    At least one row is needed. Parquet and JSONL are written block by block; NPZ holds all
    rows in memory.
    """
    with whole_file(path) as temporary:
        FORMATS[path.suffix](temporary, (_spelt(block) for block in blocks if len(block)))


def _spelt(rows: Rows) -> Rows:
    ids = np.array([printable(name) for name in rows.ids.tolist()], dtype=np.str_)
    return replace(rows, ids=ids)


def _write_parquet(path: Path, blocks: Iterable[Rows]) -> None:
    writer = None
    try:
        for rows in blocks:
            table = pa.table(_columns(rows))
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _columns(rows: Rows) -> dict[str, Any]:
    columns = {"id": pa.array(rows.ids.tolist(), pa.string())}
    if rows.embedding is not None:
        values = pa.array(rows.embedding.ravel())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, rows.embedding.shape[1])
    if rows.code is not None:
        buffers = [None, pa.py_buffer(rows.code.tobytes())]
        columns["code"] = pa.Array.from_buffers(pa.binary(rows.code.shape[1]), len(rows), buffers)
    columns["version"] = pa.array(rows.version.tolist(), pa.string())
    columns["engine"] = pa.array(rows.engine.tolist(), pa.string())
    return columns


def _write_npz(path: Path, blocks: Iterable[Rows]) -> None:
    every = list(blocks)
    columns: dict[str, Any] = {
        "id": np.concatenate([rows.ids for rows in every]),
        "version": np.concatenate([rows.version for rows in every]),
        "engine": np.concatenate([rows.engine for rows in every]),
    }
    embeddings = [rows.embedding for rows in every if rows.embedding is not None]
    codes = [rows.code for rows in every if rows.code is not None]
    if embeddings:
        columns["embedding"] = np.concatenate(embeddings)
    if codes:
        columns["code"] = np.concatenate(codes)
    with path.open("wb") as file:  # Given a name, numpy would add ".npz" to it.
        np.savez(file, **columns)


def _write_jsonl(path: Path, blocks: Iterable[Rows]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for rows in blocks:
            for row in range(len(rows)):
                file.write(json.dumps(_record(rows, row)) + "\n")


def _record(rows: Rows, row: int) -> dict[str, Any]:
    record: dict[str, Any] = {"id": str(rows.ids[row])}
    if rows.embedding is not None:
        record["embedding"] = rows.embedding[row].tolist()
    if rows.code is not None:
        record["code"] = rows.code[row].tobytes().hex()
    return {**record, "version": str(rows.version[row]), "engine": str(rows.engine[row])}


FORMATS: Final[dict[str, Callable[[Path, Iterable[Rows]], None]]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".jsonl": _write_jsonl,
}
