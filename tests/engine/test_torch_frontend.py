"""FRONTEND=torch-tensorrt up to Torch-TensorRT itself, which needs a GPU."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")
pytest.importorskip("torch", reason="the extra `train` is not installed")

import onnxruntime as ort
import tiny_embedder as tiny
import torch

from unified_embedding.engine.tensorrt import fp16_emulation, fp16_graph, gpu, torch_frontend
from unified_embedding.engine.tensorrt.builder import Options, Profile
from unified_embedding.engine.tensorrt.torch_graph import OnnxModule
from unified_embedding.errors import BuildError, TrtError

OPTIONS = Options(profile=Profile(1, 4, 8), optimization_level=3)


def run(model, pixels: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"pixels": pixels})[0]


def test_torch_computes_what_onnxruntime_computes_in_fp32() -> None:
    model, pixels = tiny.tiny_embedder(), tiny.pixels(5)
    with torch.no_grad():
        embedding, features = OnnxModule(model)(torch.from_numpy(pixels))
    assert np.abs(embedding.numpy() - run(model, pixels)).max() < 1e-4
    assert torch.equal(embedding, features)
    assert embedding.data_ptr() != features.data_ptr()


def test_the_exported_program_is_half_where_the_graph_is() -> None:
    converted, pixels = fp16_graph.convert(tiny.tiny_embedder()), tiny.pixels(3)
    program = torch_frontend.export(converted.model, 8)
    assert torch_frontend.convolution_types(program) == {torch.float16: 5}
    with torch.no_grad():
        embedding, _ = program.module()(torch.from_numpy(pixels))
    assert embedding.dtype == torch.float32
    emulated = run(fp16_emulation.emulate(converted), pixels)
    assert np.abs(embedding.numpy() - emulated).max() < 0.02


def test_an_fp32_program_is_refused() -> None:
    with pytest.raises(TrtError, match="0 of 5 convolutions of the exported program are FP16"):
        torch_frontend.compile_plan(tiny.tiny_embedder(), OPTIONS)


def test_an_operation_it_does_not_know_is_named() -> None:
    model = tiny.tiny_embedder()
    tiny.named(model, "relu").op_type = "Mish"
    with pytest.raises(ValueError, match=r"'relu' \(Mish\) has no counterpart.*FRONTEND=onnx"):
        OnnxModule(model)


@pytest.mark.skipif(bool(gpu.find()), reason="this machine has a GPU")
def test_without_torch_tensorrt_it_says_what_it_needs() -> None:
    converted = fp16_graph.convert(tiny.tiny_embedder()).model
    with pytest.raises(BuildError, match=r"FRONTEND=torch-tensorrt does not start here"):
        torch_frontend.compile_plan(converted, OPTIONS)
