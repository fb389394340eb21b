"""Exports, loaded into a real PostgreSQL and read back from Parquet."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from postgresql import Postgres, postgresql

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.codes import hamming
from unified_embedding.index import Batch, CodeIndex, Origin
from unified_embedding.index.export import to_milvus, to_postgres

ROWS = 500


@pytest.fixture
def index(tmp_path: Path, origin: Origin) -> CodeIndex:
    """500 rows of 64 bits: base and tail, one row deleted, metadata that needs care."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (ROWS, 8), dtype=np.uint8)
    embeddings = random.normal(size=(ROWS, 64)).astype(np.float32)
    ids = [f"bild/{row}.jpg" for row in range(ROWS)]
    odd = [math.nan, -math.inf, "\0\ud800\\u0000", 2.5, "36812-02-20"]
    metadata = {
        "metadata": [
            json.dumps({"name": f'Stühle "{row}"\t\\n', "odd": odd, "source": "theirs"})
            for row in range(ROWS)
        ],
        "price": [row / 2 if row % 3 else None for row in range(ROWS)],
        "source": ["ours"] * ROWS,
    }
    first = {name: values[:400] for name, values in metadata.items()}
    rest = {name: values[400:] for name, values in metadata.items()}
    batch = Batch(ids[:400], codes[:400], first, embeddings[:400])
    index = CodeIndex.build(tmp_path / "index", [batch], origin, 64, embeddings=True)
    index.add(ids[400:], codes[400:], origin, metadata=rest, embeddings=embeddings[400:])
    index.delete([ids[7]])
    return index


def test_milvus_parquet_holds_every_living_row(index: CodeIndex, tmp_path: Path) -> None:
    files = to_milvus(index, tmp_path / "out", rows_per_file=300)
    assert [path.name for path in files] == ["codes-00000.parquet", "codes-00001.parquet"]
    table = pa.concat_tables([pq.read_table(path) for path in files])
    # Milvus reads BINARY_VECTOR from list<uint8>, FLOAT_VECTOR from list<float>, JSON from text.
    assert table.schema.field("code").type == pa.list_(pa.uint8())
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    rows = table.to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == ROWS - 1
    for row in rows[:3] + rows[-3:]:
        stored = index.fetch(row["id"])
        assert row["code"] == stored.code.tolist()
        assert stored.embedding is not None
        assert row["embedding"] == stored.embedding.tolist()
        assert json.loads(row["metadata"])["name"].startswith('Stühle "')


@pytest.fixture(params=["plain", "pgvector"])
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    with postgresql(request.param) as server:
        yield server


def test_a_real_postgresql_answers_like_brute_force(
    index: CodeIndex, postgres: Postgres, request: pytest.FixtureRequest
) -> None:
    out = postgres.home / "export"
    files = to_postgres(index, out, rows_per_file=300)
    assert [path.name for path in files] == [
        "schema.sql",
        "codes-00000.copy",
        "codes-00001.copy",
        "load.sql",
        "hnsw.sql",
    ]
    for path in [out, *files]:
        path.chmod(0o755)
    inside = Postgres(postgres.bin, out, postgres.user)
    psql = ["psql", "-h", str(postgres.home), "-U", "postgres", "-d", "postgres", "-Xq"]
    inside.run(*psql, "-v", "ON_ERROR_STOP=1", "-f", "schema.sql", "-f", "load.sql")
    assert postgres.query("SELECT count(*) FROM images") == [[str(ROWS - 1)]]
    name = postgres.query("SELECT metadata->>'name', metadata->'price' FROM images WHERE row = 1")
    assert name == [['Stühle "1"\t\\n', "0.5"]]

    odd = "SELECT metadata->'odd', metadata->>'source', metadata->>'metadata.source' FROM images"
    assert postgres.query(f"{odd} WHERE row = 5") == [
        ['[null, null, "\ufffd\ufffd\\\\u0000", 2.5, "36812-02-20"]', "ours", "theirs"]
    ]

    stored = index.sample(ROWS)
    gallery = np.stack([row.code for row in stored])
    query = np.random.default_rng(1).integers(0, 256, (3, 8), dtype=np.uint8)
    distances = hamming(query, gallery)
    for code, row in zip(query, distances, strict=True):
        order = np.argsort(row, kind="stable")[:10]
        truth = [[stored[place].id, str(row[place])] for place in order]
        bits = "".join(map(str, np.unpackbits(code)))
        exact = f"bit_count(code # B'{bits}')"
        sql = f"SELECT id, {exact} FROM images ORDER BY {exact}, row LIMIT 10"
        assert postgres.query(sql) == truth
    if "plain" in request.node.name:
        return
    inside.run(*psql, "-v", "ON_ERROR_STOP=1", "-f", "hnsw.sql")
    for code, row in zip(query, distances, strict=True):
        bits = "".join(map(str, np.unpackbits(code)))
        sql = f"SELECT code <~> B'{bits}' FROM images ORDER BY code <~> B'{bits}' LIMIT 10"
        plan: Any = postgres.query(f"SET enable_seqscan = off; EXPLAIN {sql}")
        assert "Index Scan using images_code_idx" in str(plan)
        found = [float(value) for [value] in postgres.query(f"SET enable_seqscan = off; {sql}")]
        # 500 rows and the default beam of 40: nearly all of the exact answers.
        assert np.mean(np.array(found) <= np.sort(row)[9]) >= 0.8
