"""What only a GPU can show. `make gpu-check` runs these with everything else."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

from unified_embedding.engine import building, targets
from unified_embedding.engine.gates import consistency
from unified_embedding.engine.tensorrt import gpu
from unified_embedding.engine.tensorrt import library as tensorrt_library
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.gallery import Gallery
from unified_embedding.spec import MAX_BATCH_SIZE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu.find(), reason="no NVIDIA GPU here"),
]

MODEL = "models/unified-embedder-lite0"


@pytest.fixture(scope="module")
def gallery(root: Path) -> Gallery:
    return Gallery.load(root / "demo")


def built(root: Path, gallery: Gallery, repository: Path, options: PlanOptions):
    """Build, gate and install a plan; returns its target and engine.json."""
    repository.mkdir()
    target = targets.choose("tensorrt", "auto", options, repository.parent)
    building.build(root / MODEL, target, repository, gallery)
    return target, json.loads((repository / "embedder/1/engine.json").read_text())


@pytest.fixture(scope="module")
def plan(root: Path, gallery: Gallery, tmp_path_factory: pytest.TempPathFactory):
    """(target, engine.json, engine folder) of a plan that passed its gates."""
    repository = tmp_path_factory.mktemp("plan") / "model_repository"
    return *built(root, gallery, repository, PlanOptions()), repository / "embedder" / "1"


def test_a_plan_passes_the_fp16_gates_with_every_convolution_half(plan) -> None:
    _, record, folder = plan
    assert (folder / "model.plan").stat().st_size > 1_000_000
    assert record["build"]["convolutions_fp16"] == "49 of 49"
    assert record["build"]["gpu"]["name"] == gpu.find()[0].name
    assert record["gates"]["figures"]["flips_mean"] <= 0.003
    assert record["engine"].startswith("tensorrt-fp16-")


def test_every_corner_of_the_profile_agrees_and_nothing_is_stale(plan) -> None:
    target, _, folder = plan
    pixels = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
    assert consistency.problems(target.runner(folder), pixels, MAX_BATCH_SIZE, exact=False) == []


def test_the_timing_cache_is_kept_and_read(plan) -> None:
    target, _, _ = plan
    assert target.timing_cache.stat().st_size > 0


def test_torch_tensorrt_builds_the_same_embedder(
    root: Path, gallery: Gallery, plan, tmp_path: Path
) -> None:
    pytest.importorskip("torch_tensorrt", reason="the extra `torch-tensorrt` is not installed")
    options = PlanOptions(frontend="torch-tensorrt")
    target, record = built(root, gallery, tmp_path / "model_repository", options)
    assert record["build"]["convolutions_fp16"] == "49 of 49"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    by_torch = target.runner(tmp_path / "model_repository/embedder/1")(pixels)
    by_onnx = plan[0].runner(plan[2])(pixels)
    lengths = np.linalg.norm(by_torch, axis=1) * np.linalg.norm(by_onnx, axis=1)
    assert ((by_torch * by_onnx).sum(axis=1) / lengths).min() > 0.9999


@pytest.mark.skipif(
    not tensorrt_library.triton_has_tensorrt(), reason="no Triton with a TensorRT backend here"
)
def test_triton_serves_the_plan_with_and_without_cuda_graphs_or_the_gate_says_why(
    root: Path, gallery: Gallery, plan, tmp_path: Path
) -> None:
    from unified_embedding.engine.gates import reference, server_gate
    from unified_embedding.errors import BuildError
    from unified_embedding.image import Preprocessing

    pixels = reference.load_gallery(gallery, Preprocessing())[:16]
    assert server_gate.problems(plan[2].parent.parent, pixels) == []
    try:
        built(root, gallery, tmp_path / "model_repository", PlanOptions(cuda_graphs=True))
    except BuildError as error:
        assert "build without CUDA graphs" in str(error)  # noqa: PT017
    else:
        config = (tmp_path / "model_repository/embedder/config.pbtxt").read_text()
        assert "graphs: true" in config
