"""Files of vectors appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the extra `client` is not installed")

import pyarrow.parquet as pq

from unified_embedding.corpus.vector_files import FORMATS, Rows, write_rows


def rows(count: int) -> Rows:
    embedding = np.arange(8 * count, dtype=np.float32).reshape(count, 8)
    stamp = np.full(count, "stamp")
    ids = np.array([f"{row}" for row in range(count)], dtype=np.str_)
    return Rows(ids, embedding, np.packbits(embedding > 0, axis=1), stamp, stamp)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failure_half_way_leaves_the_old_file_alone(tmp_path: Path, suffix: str) -> None:
    def blocks() -> Iterator[Rows]:
        yield rows(3)
        raise OSError("disk full")

    out = tmp_path / f"e{suffix}"
    out.write_text("from before")
    with pytest.raises(OSError, match="disk full"):
        write_rows(out, blocks())
    assert out.read_text() == "from before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("suffix", FORMATS)
def test_blocks_without_rows_are_passed_over(tmp_path: Path, suffix: str) -> None:
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    write_rows(one, [rows(0), rows(3), rows(0)])
    write_rows(other, [rows(3)])
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_name_that_is_no_utf8_is_spelt_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"e{suffix}"
    write_rows(path, [replace(rows(1), ids=np.array([os.fsdecode(b"caf\xe9.jpg")]))])
    if suffix == ".parquet":
        ids = pq.read_table(path).column("id").to_pylist()
    elif suffix == ".npz":
        ids = np.load(path)["id"].tolist()
    else:
        ids = [json.loads(line)["id"] for line in path.read_text("utf-8").splitlines()]
    assert ids == ["caf\\xe9.jpg"]
