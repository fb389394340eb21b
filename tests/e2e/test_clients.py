"""Client library, client programs and load test on the real tritonserver."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("pyarrow", reason="the extra `client` is not installed")

import pyarrow.parquet as pq
import triton_calls as triton

from unified_embedding import Box, pack
from unified_embedding.client import AsyncEmbedderClient, EmbedderClient
from unified_embedding.errors import RequestRejected
from unified_embedding.gallery import Gallery

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def images(gallery: Gallery) -> list[bytes]:
    """Forty pictures: two and a half requests."""
    return [picture.path.read_bytes() for picture in gallery.pictures[::5][:40]]


@pytest.fixture(scope="module")
def truth(server: Any, images: list[bytes]) -> dict[str, np.ndarray]:
    """What plain tritonclient gets for each picture alone."""
    answers = [triton.embed(server.grpc_url, [image]) for image in images]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in triton.ALL}


def run(root: Path, *command: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "120", **environment},
        cwd=root,
    )


def test_a_list_equals_its_pictures_one_by_one(server, images, truth) -> None:
    with EmbedderClient(server.grpc_url, expect_version=server.spec.version) as client:
        answer = client.embed(images)
        info = client.info()
    assert np.array_equal(answer.embedding, truth["embedding"])
    assert np.array_equal(answer.code, truth["code"])
    assert (answer.version, answer.engine) == (server.spec.version, server.engine)
    assert (info.version, info.engine) == (server.spec.version, server.engine)
    assert (info.dim, info.code_bytes) == (server.spec.dim, server.spec.code_bytes)
    assert (info.input_size, info.max_batch_size) == (server.spec.preprocessing.size, 16)


def test_asyncio_with_many_calls_at_once(server, images, truth) -> None:
    async def scenario() -> list[Any]:
        async with AsyncEmbedderClient(server.grpc_url, max_inflight=12) as client:
            return await asyncio.gather(*(client.embed([image]) for image in images))

    answers = asyncio.run(scenario())
    assert np.array_equal(np.concatenate([answer.code for answer in answers]), truth["code"])


def test_bad_pictures_cost_their_neighbours_nothing(server, images, truth) -> None:
    damaged = list(images)
    damaged[3], damaged[4], damaged[33] = b"text", b"", images[33][:300]
    with EmbedderClient(server.grpc_url) as client:
        with pytest.raises(RequestRejected, match="image 3: not an image") as refusal:
            client.embed(damaged)
        answer = client.embed_each(damaged)
    assert refusal.value.row == 3
    assert set(answer.errors) == {3, 4, 33}
    assert str(answer.errors[4]).startswith("image 4: the image is empty")
    assert np.array_equal(answer.embedded.embedding, truth["embedding"][list(answer.rows)])


def test_crops_belong_to_their_own_pictures(server, images) -> None:
    boxes = [Box(row / 80, 0, 0.5 + row / 80, 0.75) if row % 3 else None for row in range(20)]
    with EmbedderClient(server.grpc_url) as client:
        answer = client.embed(images[:20], crops=boxes)
        for row in (0, 1, 15, 16, 19):
            alone = client.embed(images[row : row + 1], crops=boxes[row])
            assert np.array_equal(answer.embedding[row], alone.embedding[0])
            whole = client.embed(images[row : row + 1])
            assert np.array_equal(whole.embedding, alone.embedding) == (boxes[row] is None)


def test_one_output_alone_leaves_the_binarizer_idle(server, images) -> None:
    with EmbedderClient(server.grpc_url) as client:
        before = triton.settled(client.statistics)
        assert client.embed(images, outputs=["embedding"]).code is None
        after = triton.settled(client.statistics)
    assert (after["binarizer"] - before["binarizer"]).inferences == 0
    assert (after["embedder"] - before["embedder"]).inferences == len(images)


def test_embed_writes_one_row_per_demo_picture(server, root: Path, gallery, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    done = run(root, "clients/embed.py", "demo/", "--out", out, "--url", server.grpc_url)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(out)
    names = {str(picture.path.relative_to(root)) for picture in gallery.pictures}
    assert sorted(table["id"].to_pylist()) == sorted(names)
    assert set(table["version"].to_pylist()) == {server.spec.version}
    assert set(table["engine"].to_pylist()) == {server.engine}
    embedding = np.stack(table["embedding"].to_numpy())
    code = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint8)
    assert embedding.dtype == np.float32
    assert np.array_equal(code.reshape(len(embedding), -1), pack(embedding))


def test_status_of_a_running_server(server, root: Path) -> None:
    shown = run(root, "clients/status.py", "--url", server.grpc_url)
    assert shown.returncode == 0, shown.stderr
    assert server.spec.version in shown.stdout
    assert server.engine in shown.stdout
    record = json.loads(run(root, "clients/status.py", "--json", "--url", server.grpc_url).stdout)
    assert record["up"] is True
    stages = record["stages"]
    assert list(stages) == ["preprocess", "embedder", "binarizer", "unified_embedding"]
    assert all(stage["compute_ms"] > 0 for stage in stages.values())


def test_status_of_a_stopped_server(root: Path) -> None:
    status = run(root, "clients/status.py", "--url", "127.0.0.1:1")
    assert status.returncode == 1
    assert "127.0.0.1:1 is unavailable" in status.stderr


@pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="no extra `load`")
def test_locust_drives_the_server_without_an_error(server, root: Path, tmp_path: Path) -> None:
    command = ["-m", "locust", "-f", "loadtest/", "--headless", "-u", "8", "-r", "8", "-t", "5s"]
    done = run(root, *command, "--host", server.grpc_url, "--json-file", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    (stats,) = json.loads((tmp_path / "report.json").read_text())
    assert stats["num_requests"] > 8
    assert stats["num_failures"] == 0
