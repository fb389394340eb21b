"""The emulation rounds what a GPU rounds: compared with numpy's own half."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra `build` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

import onnx
import onnxruntime as ort
import tiny_embedder as tiny

from unified_embedding.engine.tensorrt import fp16_emulation, fp16_graph
from unified_embedding.errors import Fp16Error


def run(model, pixels: np.ndarray, output: str = "embedding") -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output], {"pixels": pixels})[0]


def half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


def convolve(image: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, **how: int):
    """Plain convolution in fp32, rounded to half once at the end."""
    stride, before, after = how.get("stride", 1), how.get("before", 0), how.get("after", 0)
    image = np.pad(image, ((0, 0), (0, 0), (before, after), (before, after)))
    size, depthwise = weight.shape[2], weight.shape[1] == 1
    steps = (image.shape[2] - size) // stride + 1
    out = np.zeros((len(image), len(weight), steps, steps), np.float32)
    for y in range(steps):
        for x in range(steps):
            top, left = y * stride, x * stride
            window = image[:, :, top : top + size, left : left + size]
            if depthwise:
                out[:, :, y, x] = (window * half(weight)[None, :, 0]).sum((2, 3))
            else:
                out[:, :, y, x] = np.tensordot(window, half(weight), ((1, 2, 3), (1, 2, 3)))
    if bias is not None:
        out += half(bias)[None, :, None, None]
    return half(out)


def in_numpy(model, pixels: np.ndarray) -> np.ndarray:
    """The tiny embedder with every trunk tensor stored as half."""
    weight = {tensor.name: tiny.constant(model, tensor.name) for tensor in model.graph.initializer}
    image = half(((pixels.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2))
    stem = convolve(image, weight["stem.weight"], weight["stem.bias"], stride=2, after=1)
    relu6 = np.clip(stem, 0, 6)
    depthwise = convolve(relu6, weight["depthwise.weight"], before=1, after=1)
    pool = half(depthwise.mean((2, 3), keepdims=True))
    squeezed = np.maximum(convolve(pool, weight["squeeze.weight"]), 0)
    gate = half(1 / (1 + np.exp(-convolve(squeezed, weight["excite.weight"]))))
    residual = half(half(depthwise * gate) + relu6)
    last = np.maximum(convolve(residual, weight["expand.weight"], weight["expand.bias"]), 0)
    pooled = last.mean((2, 3))
    centred = pooled - pooled.mean(1, keepdims=True)
    return centred / np.sqrt(centred.var(1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_numpy_half_and_not_fp32(seed: int) -> None:
    model, pixels = tiny.tiny_embedder(seed), tiny.pixels(8, seed)
    emulated = run(fp16_emulation.emulate(fp16_graph.convert(model)), pixels)
    truth = in_numpy(model, pixels)
    to_truth = np.abs(emulated - truth).mean()
    to_fp32 = np.abs(emulated - run(model, pixels)).mean()
    # Sums of other order move a few values by one unit in the last place of half.
    assert to_truth < to_fp32 / 4
    assert to_fp32 > 1e-5


def test_types_are_fp32_again_and_every_trunk_tensor_is_rounded() -> None:
    converted = fp16_graph.convert(tiny.tiny_embedder())
    model = fp16_emulation.emulate(converted)
    for name in ("stem", "gate", "last_relu"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
        values = run(model, tiny.pixels(), name)
        assert values.dtype == np.float32
        assert np.array_equal(values, half(values)), name


def test_peaks_are_the_largest_values_of_the_fp32_graph() -> None:
    model, pixels = tiny.tiny_embedder(), tiny.pixels()
    found = fp16_emulation.peaks(fp16_graph.convert(model), pixels)
    for name in ("stem", "residual", "expand"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
        assert found[name] == pytest.approx(np.abs(run(model, pixels, name)).max(), rel=2e-3), name
    assert fp16_emulation.check_peaks(found) == max(found.items(), key=lambda item: item[1])


def test_a_node_near_overflow_is_named() -> None:
    model = tiny.tiny_embedder()
    tiny.set_constant(model, "expand.bias", np.full(tiny.DIM, 40_000, np.float32))
    peaks = fp16_emulation.peaks(fp16_graph.convert(model), tiny.pixels())
    with pytest.raises(Fp16Error, match=r"node 'expand' writes values up to 4000\d"):
        fp16_emulation.check_peaks(peaks)
    with pytest.raises(Fp16Error, match="node 'x' writes values up to nan"):
        fp16_emulation.check_peaks({"x": float("nan")})
