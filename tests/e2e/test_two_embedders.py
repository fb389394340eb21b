"""Two embedders in one repository, served by one server: the released one, and a tiny one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

import tiny_embedder as tiny
from drills import NOTICED_S, SERVED_S, ready, serves, stub_of, until
from programs import run_program

from unified_embedding import EmbedderSpec, load_pixels, onnx_file, pack
from unified_embedding.client import AsyncEmbedderClient, EmbedderClient
from unified_embedding.engine.gates.reference import reference_runner
from unified_embedding.errors import ServerUnavailable
from unified_embedding.gallery import Gallery
from unified_embedding.serving import processes
from unified_embedding.serving.local_server import LocalServer, start

pytestmark = pytest.mark.e2e
SECOND = "v2-unified_embedding"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another trunk, of another input size and width."""
    folder, network = tmp_path_factory.mktemp("models") / "tiny", tiny.tiny_embedder()
    folder.mkdir()
    onnx_file.save(network, tiny.spec_of(network), folder)
    return folder


@pytest.fixture(scope="module")
def both(
    root: Path,
    repository: Path,
    model: Path,
    few_products: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The session's repository, and beside it what `make engine PREFIX=v2-` installs."""
    folder = tmp_path_factory.mktemp("both") / "model_repository"
    shutil.copytree(repository, folder)
    before = contents(folder)
    arguments = ["--model", str(model), "--gallery", str(few_products), "--precision", "fp32"]
    place = ["--repository", str(folder), "--prefix", "v2-"]
    build = run_program(root, "build/engine.py", *arguments, *place)
    assert build.returncode == 0, build.stdout + build.stderr
    # The first embedder is untouched.
    after = contents(folder)
    assert {path: text for path, text in after.items() if not path.startswith("v2-")} == before
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def two(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    started = start(both, tmp_path_factory.mktemp("two") / "log")
    yield started
    assert started.stop() == 0


def test_each_answers_with_its_own_version_and_bits(
    two: LocalServer, both: Path, model: Path, gallery: Gallery, right: np.ndarray, server
) -> None:
    images = [picture.path.read_bytes() for picture in gallery.pictures[:20]]
    with (
        EmbedderClient(two.grpc_url) as first,
        EmbedderClient(two.grpc_url, model=SECOND) as second,
    ):
        assert first.is_ready()
        assert second.is_ready()
        released, small = first.embed(images), second.embed(images)
        info = second.info()
    assert (released.version, released.engine) == (server.spec.version, server.engine)
    assert np.array_equal(released.code[:1], right)
    spec = EmbedderSpec.load(model)
    record = json.loads((both / "v2-embedder/1/engine.json").read_text())
    assert (small.version, small.engine) == (spec.version, record["engine"])
    assert (info.version, info.dim, info.input_size) == (spec.version, 16, 16)
    pixels = np.stack([load_pixels(image, spec.preprocessing) for image in images])
    truth = reference_runner(model)(pixels)
    assert np.allclose(small.embedding, truth, atol=1e-4)
    assert np.array_equal(small.code, pack(small.embedding))


async def asked(url: str, image: bytes) -> tuple[str, str]:
    async with (
        AsyncEmbedderClient(url) as first,
        AsyncEmbedderClient(url, model=SECOND) as second,
    ):
        return (await first.embed([image])).version, (await second.embed([image])).version


def test_the_asyncio_client_and_status_ask_the_one_that_is_named(
    two: LocalServer, root: Path, both: Path, image: list[bytes]
) -> None:
    import asyncio

    versions = tuple(EmbedderSpec.load(both / name / "1").version for name in
                     ("embedder", "v2-embedder"))  # fmt: skip
    assert asyncio.run(asked(two.grpc_url, image[0])) == versions
    command = ["clients/status.py", "--json", "--pictures", "2", "--url", two.grpc_url]
    for version, prefix in zip(versions, ("", "v2-"), strict=True):
        done = run_program(root, *command, "--model-name", f"{prefix}unified_embedding")
        assert done.returncode == 0, done.stderr
        status = json.loads(done.stdout)
        assert status["version"] == version
        steps = ("preprocess", "embedder", "binarizer", "unified_embedding")
        assert list(status["stages"]) == [f"{prefix}{step}" for step in steps]


def test_each_engine_tells_its_own_pace(two: LocalServer, image: list[bytes]) -> None:
    with EmbedderClient(two.grpc_url) as one, EmbedderClient(two.grpc_url, model=SECOND) as other:
        one.embed(image)
        other.embed(image)
    mark = f"unified_embedding-{two.server_pid}-"
    paces = {name.partition("-pace-")[2] for name in os.listdir("/dev/shm")
             if name.startswith(mark) and "-pace-" in name}  # fmt: skip
    assert paces == {"embedder", "v2-embedder"}


def test_a_dead_process_of_either_is_noticed_and_both_are_served_again(
    two: LocalServer, image: list[bytes], right: np.ndarray
) -> None:
    with EmbedderClient(two.grpc_url, model=SECOND) as client:
        before, known = two.server_pid, client.embed(image)
        os.kill(stub_of(two, "v2-embedder"), signal.SIGKILL)
        until(lambda: not ready(two), NOTICED_S, "still called itself ready")
        until(lambda: ready(two), SERVED_S, "was not ready again")
        assert np.array_equal(client.embed(image).code, known.code)
    assert serves(two, image, right)
    assert two.server_pid != before
    assert "the process of model v2-embedder" in two.log.read_text(errors="replace")
    assert processes.state(before) == ""


def test_a_server_without_it_says_so(server, image: list[bytes]) -> None:
    with (
        EmbedderClient(server.grpc_url, model="v3-unified_embedding", timeout=2) as client,
        pytest.raises(ServerUnavailable, match="v3-unified_embedding"),
    ):
        client.embed(image)


def test_the_demo_of_a_random_embedder_says_that_its_recall_means_nothing(
    both: Path, root: Path, tmp_path: Path
) -> None:
    place = ["--repository", str(both), "--out", str(tmp_path / "demo.png")]
    demo = run_program(root, "clients/demo.py", *place, "--model-name", SECOND)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "embedder " + EmbedderSpec.load(both / "v2-embedder/1").version in demo.stdout
    assert "random weights: these recalls mean nothing" in demo.stdout


def test_one_that_fails_its_gates_leaves_no_model_behind(
    root: Path, repository: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model_repository"
    folder.mkdir()
    build = subprocess.run(
        [sys.executable, "build/engine.py", "--repository", folder, "--prefix", "v2-",
         "--precision", "fp8"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert build.returncode == 1
    assert list(folder.iterdir()) == []
