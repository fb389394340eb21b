"""Target `tensorrt` as far as it goes without a GPU.

TensorRT-RTX, whose calls are the same, stands in for the package; a GPU and Triton's library are
described, not there. What the plan answers is for `make gpu-check` to find out.
"""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")
pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt-rtx` is not installed")

import onnx
import tensorrt_rtx
import tiny_embedder as tiny

from unified_embedding.engine import targets
from unified_embedding.engine.tensorrt import gpu
from unified_embedding.engine.tensorrt import library as tensorrt_library
from unified_embedding.engine.tensorrt import target as tensorrt_target
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.errors import BuildError
from unified_embedding.spec import MAX_BATCH_SIZE

L4 = gpu.Gpu("NVIDIA L4", "8.9", 24 << 30, "13.4")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A described GPU, a package, and a Triton that loads the same version."""
    monkeypatch.setattr(gpu, "find", lambda: [L4])
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_rtx)
    monkeypatch.setattr(tensorrt_library, "triton_library", lambda: Path("libnvinfer.so"))
    monkeypatch.setattr(tensorrt_library, "library_version", lambda _: tensorrt_rtx.__version__)
    monkeypatch.setattr(tensorrt_library, "triton_has_tensorrt", lambda: True)
    return monkeypatch


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_a_plan_is_compiled_and_described(
    machine: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = tmp_path / "tiny", tmp_path / "1"
    model.mkdir()
    folder.mkdir()
    onnx.save(tiny.tiny_embedder(), model / "embedder.onnx")
    target = targets.choose("tensorrt", "auto", PlanOptions(optimum_batch=4), tmp_path)
    record = target.compile(model, folder, tiny.pixels())
    assert (folder / "model.plan").stat().st_size > 1000
    assert record["convolutions_fp16"] == "5 of 5"
    assert record["gpu"] == {
        "name": "NVIDIA L4", "capability": "8.9", "memory": 24 << 30, "cuda": "13.4",
    }  # fmt: skip
    assert record["profile"] == {"minimum": 1, "optimum": 4, "maximum": 16}
    assert record["tensorrt_rtx"] == tensorrt_rtx.__version__
    assert record["largest_value"]["value"] > 0
    json.dumps(record)
    assert "5 of 5 convolutions FP16" in capsys.readouterr().out
    (cache,) = tmp_path.glob("timing-*.cache")
    assert cache.name == f"timing-nvidia-l4-13.4-{tensorrt_rtx.__version__}.cache"


def test_triton_is_told_how_to_run_it(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = targets.choose("tensorrt", "fp16", PlanOptions(cuda_graphs=True), tmp_path)
    assert isinstance(target, targets.ServedTarget)
    config = target.config()
    assert (config.backend, config.kind, config.warm_up) == ("tensorrt", "KIND_GPU", True)
    assert config.cuda_graphs
    plain = targets.choose("tensorrt", "fp16", PlanOptions(), tmp_path)
    assert isinstance(plain, targets.ServedTarget)
    assert not plain.config().cuda_graphs
    assert plain.inputs() != target.inputs()
    assert plain.inputs()["gpu"] == "NVIDIA L4"
    assert MAX_BATCH_SIZE == 16


def test_another_version_than_tritons_is_refused_and_both_are_named(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.setattr(tensorrt_library, "library_version", lambda _: "11.4.0.106")
    with pytest.raises(BuildError) as caught:
        targets.choose("tensorrt", "auto", PlanOptions(), tmp_path)
    assert tensorrt_rtx.__version__ in str(caught.value)
    assert "11.4.0.106" in str(caught.value)


def test_what_is_missing_is_named(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BuildError, match="needs the Python package tensorrt") as caught:
        targets.choose("tensorrt", "auto", PlanOptions(), tmp_path)
    assert "an NVIDIA GPU" not in str(caught.value).split("not found")[0]
    machine.setitem(sys.modules, "tensorrt", tensorrt_rtx)
    with pytest.raises(BuildError, match="COMPUTE_CAPABILITIES is for TARGET=tensorrt-rtx"):
        targets.choose("tensorrt", "auto", PlanOptions(compute_capabilities=("8.9",)), tmp_path)


def test_auto_takes_the_gpu_only_where_triton_can_serve_its_plan(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="the extra `build` is not installed")
    assert targets.choose("auto", "auto", PlanOptions(), tmp_path).name == "tensorrt"
    assert targets.choose("auto", "fp32", PlanOptions(), tmp_path).name == "openvino"
    machine.setattr(tensorrt_library, "triton_has_tensorrt", lambda: False)
    assert targets.choose("auto", "auto", PlanOptions(), tmp_path).name == "openvino"
    assert tensorrt_target.available() is False
