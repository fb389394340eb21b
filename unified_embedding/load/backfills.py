"""Back-fills of a made-up corpus, as the benchmarks run them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from unified_embedding.checkout import ROOT
from unified_embedding.errors import RunError
from unified_embedding.serving.local_server import child

SHARD: Final = 128


def corpus(path: Path, pictures: Sequence[bytes], count: int) -> Path:
    """A Parquet file of `count` pictures, the same ones over and over."""
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, count, SHARD):
            last = min(first + SHARD, count)
            rows = [pictures[row % len(pictures)] for row in range(first, last)]
            writer.write_table(pa.table({"image": rows}, schema=schema))
    return path


def program(source: Path, out: Path, urls: Sequence[str], *options: str) -> list[str]:
    """Command line of a back-fill of `source` into `out`."""
    command = [sys.executable, str(ROOT / "clients" / "backfill.py"), str(source)]
    for url in urls:
        command += ["--url", url]
    return [*command, "--out", str(out), *options]


def backfilled(source: Path, out: Path, urls: Sequence[str], inflight: int, *options: str) -> float:
    """Run a back-fill to its end; seconds from its first shard to the end.

    Raises:
        RunError: it failed.
    """
    command = program(source, out, urls, "--max-inflight", str(inflight), *options)
    with child(command, stderr=subprocess.PIPE, text=True) as run:
        _, said = run.communicate()
    if run.returncode:
        raise RunError(f"the back-fill ended with {run.returncode}: {said[-500:]}")
    [report] = out.glob("*/report.json")
    return float(json.loads(report.read_text())["seconds_this_run"])
