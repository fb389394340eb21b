"""`make gpu-check`: its steps on the CPU engine, and what it says without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")
pytest.importorskip("openvino", reason="the extra `build` is not installed")

from unified_embedding.checkout import RELEASED
from unified_embedding.cli import gpu_check
from unified_embedding.engine.gates import server_gate
from unified_embedding.engine.tensorrt import gpu
from unified_embedding.errors import SetupError
from unified_embedding.gallery import Gallery
from unified_embedding.serving import model_config
from unified_embedding.serving import repository as production_repository
from unified_embedding.serving.tritonserver import resolve

STALE_MODEL = '''
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers a single picture with the picture that was asked for before it."""

    last = None

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        pixels = pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()
        previous, self.last = self.last, np.array(pixels)
        late = STALE and previous is not None and len(previous) == len(pixels) == 1
        rows = (previous if late else pixels).reshape(len(pixels), -1).astype(np.float32)
        tensors = [pb_utils.Tensor(name, rows) for name in ("embedding", "features")]
        return pb_utils.InferenceResponse(tensors)
'''
CONFIG = """
backend: "python"
max_batch_size: 16
input [ { name: "pixels" data_type: TYPE_UINT8 dims: [ 8, 8, 3 ] } ]
output [
  { name: "embedding" data_type: TYPE_FP32 dims: [ 192 ] },
  { name: "features" data_type: TYPE_FP32 dims: [ 192 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""


@pytest.fixture(scope="module")
def triton() -> None:
    """Skips where no tritonserver can be started."""
    try:
        resolve([], os.environ)
    except SetupError as error:
        pytest.skip(str(error))


def repository_of(folder: Path, stale: bool) -> Path:
    model = folder / "model_repository" / "embedder"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "1/model.py").write_text(STALE_MODEL.replace("STALE", str(stale)))
    return folder / "model_repository"


@pytest.mark.e2e
@pytest.mark.parametrize("stale", [True, False])
def test_a_stale_answer_of_the_real_server_fails_the_gate(
    triton: None, tmp_path: Path, stale: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    found = server_gate.problems(repository_of(tmp_path, stale), pixels)
    expected = [f"answer {turn} is not that picture's" for turn in (2, 3, 4)] if stale else []
    assert [sentence.split("one by one, ")[-1] for sentence in found] == expected


@pytest.mark.e2e
def test_the_whole_check_runs_on_the_cpu_engine(triton: None, root: Path) -> None:
    gallery = Gallery.load(root / "demo")
    found = gpu_check.examine(
        RELEASED, gallery, "openvino", 0.5, cuda_graphs=False, loads=((2, 1), (1, 16))
    )
    assert found.problems == []
    assert list(found.speeds) == [1, 2, 4, 8, 16]
    single, bulk = found.loads
    assert (single.failures, bulk.failures) == (0, 0)
    assert bulk.mean_batch == 16
    assert 0 < single.p50_ms <= single.p99_ms
    device = gpu.Gpu("NVIDIA L4", "8.9", 24 << 30, "13.4")
    text = "\n".join(gpu_check.report(device, [found], tests_passed=False))
    assert text.startswith("# NVIDIA L4\n\nCompute capability 8.9, 24 GiB, driver for CUDA 13.4")
    assert "tests: **failed**" in text
    assert found.record["engine"] in text
    assert f"| 2 x 1 | {single.images_per_second:.0f} |" in text
    assert "consistent in every batch, no stale answer" in text


@pytest.mark.skipif(bool(gpu.find()), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(root: Path) -> None:
    before = set((root / "docs").rglob("*"))
    run = subprocess.run(
        [sys.executable, "build/gpu_check.py"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    sentence = "gpu-check: there is no NVIDIA GPU here, so nothing was checked or measured\n"
    assert (run.stdout, run.stderr) == ("", sentence)
    assert set((root / "docs").rglob("*")) == before


def test_a_document_is_named_after_the_gpu() -> None:
    assert gpu_check.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert gpu_check.slug("NVIDIA GeForce RTX 4090 (Laptop)") == "nvidia-geforce-rtx-4090-laptop"


def test_a_production_repository_has_as_many_decoders_as_asked(root: Path, tmp_path: Path) -> None:
    source, into = root / "model_repository", tmp_path / "model_repository"
    (into / "embedder").mkdir(parents=True)
    (into / "embedder/config.pbtxt").write_text("installed")
    (into / "preprocess").mkdir()
    (into / "preprocess/left-over").write_text("of an older release")
    production_repository.assemble(source, into, 12)
    assert (into / "embedder/config.pbtxt").read_text() == "installed"
    assert not (into / "preprocess/left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model_repository"]
    changed = [
        str(path.relative_to(into))
        for path in sorted(into.rglob("*"))
        if path.is_file()
        and "embedder" not in path.parts
        and path.read_bytes() != (source / path.relative_to(into)).read_bytes()
    ]
    assert changed == ["preprocess/config.pbtxt"]
    decoders, checkout = (model_config.read(place / "preprocess") for place in (into, source))
    assert (decoders.instance_group[0].count, checkout.instance_group[0].count) == (12, 3)
    decoders.instance_group[0].count = 3
    assert decoders == checkout
    production_repository.assemble(source, into)
    for name in production_repository.STATIC_MODELS:
        config = (into / name / "config.pbtxt").read_text()
        assert config == (source / name / "config.pbtxt").read_text()
    with pytest.raises(ValueError, match="at least one instance"):
        production_repository.assemble(source, into, 0)
    assert (into / "preprocess/config.pbtxt").exists()
