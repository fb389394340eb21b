"""Back-fill from an object store into one, and an index from there; against a local S3."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kserve_peer import VERSION, Peer, serving
from object_store import object_store

pytest.importorskip("faiss", reason="the extra `search` is not installed")


@pytest.fixture
def options() -> Iterator[str]:
    """URI options of an S3 server with pictures in its bucket `shop`."""
    with object_store() as (options, filesystem):
        for number in range(10):
            with filesystem.open_output_stream(f"shop/pictures/{number}.jpg") as file:
                file.write(b"picture %d" % number)
        yield options


def test_from_s3_to_s3_and_into_an_index(root: Path, tmp_path: Path, options: str) -> None:
    clients = root / "clients"
    out = f"s3://shop/corpus{options}"
    with serving(Peer()) as peer:
        fill = [sys.executable, str(clients / "backfill.py"), f"s3://shop/pictures/{options}"]
        fill += ["--out", out, "--url", peer.url, "--shard-size", "4"]
        for _ in range(2):
            done = subprocess.run(fill, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    assert peer.most_at_once == 1, "more than one request per server without being asked"
    build = [sys.executable, str(clients / "index.py"), "build", out]
    build += ["--out", str(tmp_path / "index")]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from unified_embedding.index import CodeIndex

    index = CodeIndex.open(tmp_path / "index")
    assert len(index) == 10
    assert index.header.origin.version == VERSION
    # Options of the URI, an endpoint among them, are no part of what a row says.
    stored = index.fetch("s3://shop/pictures/3.jpg")
    assert stored.metadata["source"] == "s3://shop/pictures/3.jpg"
