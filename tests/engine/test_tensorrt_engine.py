"""`make engine TARGET=tensorrt-rtx` and TARGET=tensorrt, as their users run them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")
pytest.importorskip("onnx", reason="the extra `build` is not installed")

import tiny_embedder as tiny

from unified_embedding import onnx_file
from unified_embedding.engine.tensorrt import gpu

MODEL = "models/unified-embedder-lite0"

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="the extra `tensorrt-rtx` is not installed",
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository where an engine is already installed."""
    installed = tmp_path / "model_repository/embedder/1"
    installed.mkdir(parents=True)
    (installed / "engine.json").write_text('{"engine": "the old one"}')
    return tmp_path / "model_repository"


def engine(root: Path, *arguments: str | Path, **environment: str):
    return subprocess.run(
        [sys.executable, "build/engine.py", *map(str, arguments)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "300", **environment},
    )


def untouched(repository: Path) -> bool:
    files = [path for path in repository.rglob("*") if path.is_file()]
    return [path.read_text() for path in files] == ['{"engine": "the old one"}']


def saved(model, folder: Path) -> Path:
    folder.mkdir()
    onnx_file.save(model, tiny.spec_of(model), folder)
    return folder


@needs_rtx
def test_rtx_compiles_counts_and_leaves_the_installed_engine(
    root: Path, few_products: Path, repository: Path
) -> None:
    arguments = ("--model", MODEL, "--gallery", few_products, "--repository", repository)
    run = engine(root, *arguments, "--target", "tensorrt-rtx")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "49 of 49 convolutions FP16, 1 of 1 normalisations FP32" in run.stdout
    assert "loss <= 0.01 of the queries" in run.stdout
    assert untouched(repository)
    out = root / "build/out/unified-embedder-lite0"
    assert (out / "model.plan").stat().st_size > 5_000_000
    record = json.loads((out / "engine.json").read_text())
    assert record["build"]["convolutions_fp16"] == "49 of 49"
    assert record["build"]["types"]["NORMALIZATION"] == {"FLOAT -> FLOAT": 1}
    assert record["build"]["profile"] == {"minimum": 1, "optimum": 8, "maximum": 16}
    assert 0 < record["build"]["largest_value"]["value"] < 65504 / 2
    assert record["gates"]["figures"]["flips_mean"] > 0
    assert record["gates"]["limits"]["flips_mean"] == 0.003


@needs_rtx
@pytest.mark.slow
@pytest.mark.skipif("RUN_SLOW" not in os.environ, reason="takes minutes; RUN_SLOW=1 runs it")
def test_rtx_compiles_the_papers_trunk(
    root: Path, few_products: Path, repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm", reason="the extra `train` is not installed")
    export = [sys.executable, "-m", "unified_embedding.export"]
    trunk = ["--trunk", "seresnext101_32x4d", "--out", str(tmp_path / "se")]
    subprocess.run([*export, *trunk], cwd=root, check=True)
    arguments = ("--model", tmp_path / "se", "--gallery", few_products, "--repository", repository)
    run = engine(root, *arguments, "--target", "tensorrt-rtx")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "170 of 170 convolutions FP16, 1 of 1 normalisations FP32" in run.stdout
    assert "these figures mean nothing" in run.stdout


@needs_rtx
@pytest.mark.parametrize(
    ("defect", "named"),
    [
        ("unsupported", "node 'relu6' (Bernoulli), unsupported node"),
        ("permuted", "node 'early_permute' (Transpose) reads the uint8 input 'pixels'"),
        ("overflow", "node 'expand' writes values up to 4000"),
    ],
)
def test_a_broken_graph_is_refused_and_its_node_named(
    root: Path, few_products: Path, repository: Path, tmp_path: Path, defect: str, named: str
) -> None:
    model = tiny.permute_before_cast() if defect == "permuted" else tiny.tiny_embedder()
    if defect == "unsupported":
        planted = tiny.named(model, "relu6")
        planted.op_type = "Bernoulli"
        del planted.input[1:]
    if defect == "overflow":
        bias = tiny.constant(model, "expand.bias") + 40_000
        tiny.set_constant(model, "expand.bias", bias)
    folder = saved(model, tmp_path / defect)
    arguments = ("--model", folder, "--gallery", few_products, "--repository", repository)
    run = engine(root, *arguments, "--target", "tensorrt-rtx")
    assert run.returncode == 1
    assert named in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    assert untouched(repository)
    assert not (root / "build/out/tiny").exists()


@pytest.mark.skipif(bool(gpu.find()), reason="this machine has a GPU")
def test_tensorrt_without_a_gpu_says_so_in_one_sentence(
    root: Path, few_products: Path, repository: Path
) -> None:
    arguments = ("--model", MODEL, "--gallery", few_products, "--repository", repository)
    run = engine(root, *arguments, "--target", "tensorrt")
    assert run.returncode == 1
    (line,) = run.stdout.strip().splitlines()
    assert line.startswith("engine not installed: TARGET=tensorrt needs an NVIDIA GPU")
    assert "TARGET=openvino" in line
    assert "TARGET=tensorrt-rtx" in line
    assert run.stderr == ""
    assert untouched(repository)


@pytest.mark.parametrize(
    ("target", "settings", "reason"),
    [
        ("tensorrt-rtx", {"FRONTEND": "torch-tensorrt"}, "needs TARGET=tensorrt and a GPU"),
        ("tensorrt-rtx", {"VERSION_COMPATIBLE": "1"}, "has no version-compatible plans"),
        ("tensorrt-rtx", {"OPTIMUM_BATCH": "17"}, "minimum <= optimum <= maximum"),
        ("tensorrt-rtx", {"COMPUTE_CAPABILITIES": "9.0"}, "9.0 is unknown to TensorRT-RTX"),
        ("tensorrt", {"FRONTEND": "tensorflow"}, "FRONTEND=tensorflow is unknown"),
        ("tensorrt", {"OPTIMIZATION_LEVEL": "6"}, "optimisation level 6 is not in 0..5"),
        ("tensorrt", {"PRECISION": "int8"}, "PRECISION=int8 is not built for tensorrt"),
    ],
)
@needs_rtx
def test_settings_that_do_not_fit_are_named(
    root: Path,
    few_products: Path,
    repository: Path,
    tmp_path: Path,
    target: str,
    settings: dict[str, str],
    reason: str,
) -> None:
    folder = saved(tiny.tiny_embedder(), tmp_path / "tiny")
    arguments = ("--model", folder, "--gallery", few_products, "--repository", repository)
    precision = ("--precision", settings.pop("PRECISION", "auto"))
    run = engine(root, *arguments, "--target", target, *precision, **settings)
    assert run.returncode == 1
    assert reason in run.stdout
    assert untouched(repository)
