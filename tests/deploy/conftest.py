"""A small embedder behind real servers, for the gateways before them."""

import os
import shutil
from pathlib import Path

import pytest
from programs import run_program

from unified_embedding.errors import SetupError
from unified_embedding.gateway import envoy
from unified_embedding.serving.repository import assemble
from unified_embedding.serving.tritonserver import resolve


@pytest.fixture(scope="session")
def repository(root: Path, few_products: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny embedder, compiled and checked by the real build step, in a repository of its own."""
    try:
        envoy.find()
        resolve([], os.environ)
    except SetupError as error:
        pytest.skip(str(error))
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl, which makes the gateway's certificate")
    pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")
    import tiny_embedder as tiny

    from unified_embedding import onnx_file

    folder, network = tmp_path_factory.mktemp("deploy"), tiny.tiny_embedder()
    (folder / "tiny").mkdir()
    onnx_file.save(network, tiny.spec_of(network), folder / "tiny")
    assemble(root / "model_repository", folder / "models", preprocess_instances=2)
    arguments = ["--model", str(folder / "tiny"), "--gallery", str(few_products)]
    place = ["--precision", "fp32", "--repository", str(folder / "models")]
    build = run_program(root, "build/engine.py", *arguments, *place)
    assert build.returncode == 0, build.stdout + build.stderr
    return folder / "models"


@pytest.fixture(scope="session")
def image(root: Path) -> bytes:
    """One picture."""
    return (root / "demo/shots/blendswap-cc-by-arbolito-1.jpg").read_bytes()
