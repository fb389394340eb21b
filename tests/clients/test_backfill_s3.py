"""Back-fill from an object store into one, and an index from there; against a local S3."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from kserve_peer import VERSION, Peer, serving

pytest.importorskip("faiss", reason="the extra `search` is not installed")


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI options of an S3 server with a bucket `shop`, credentials in the environment."""
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("no S3 server here: pip install 'moto[server]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"127.0.0.1:{port}"
    server = subprocess.Popen(
        [program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        filesystem = pafs.S3FileSystem(
            endpoint_override=endpoint,
            scheme="http",
            allow_bucket_creation=True,
            allow_delayed_open=True,
        )
        filesystem.create_dir("shop")
        for number in range(10):
            with filesystem.open_output_stream(f"shop/pictures/{number}.jpg") as file:
                file.write(b"picture %d" % number)
        yield f"?scheme=http&region=us-east-1&endpoint_override={endpoint}"
    finally:
        server.terminate()
        server.wait()


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
