"""A local S3 server (moto) for the length of a test."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from unittest import mock

import pyarrow.fs as pafs
import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@contextmanager
def object_store(bucket: str = "shop") -> Iterator[tuple[str, pafs.S3FileSystem]]:
    """A server with an empty bucket: the options of its URIs, and its file system.

    Credentials stand in the environment meanwhile.
    """
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("no S3 server here: pip install 'moto[server]'")
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
        with mock.patch.dict(os.environ, CREDENTIALS):
            filesystem = pafs.S3FileSystem(
                endpoint_override=endpoint,
                scheme="http",
                allow_bucket_creation=True,
                allow_delayed_open=True,
            )
            filesystem.create_dir(bucket)
            yield f"?scheme=http&region=us-east-1&endpoint_override={endpoint}", filesystem
    finally:
        server.terminate()
        server.wait()
