"""The FP16 graph: what is half, what is not, and what is refused."""

import copy

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra `build` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

import onnx
import onnxruntime as ort
import tiny_embedder as tiny
from onnx import TensorProto, helper

from unified_embedding.engine.tensorrt import fp16_graph
from unified_embedding.errors import Fp16Error


def run(model, pixels: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"pixels": pixels})[0]


def tensor_types(model) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in graph.initializer
    }


def types_of(model, name: str) -> set[int]:
    """Types of all float tensors that a node reads and writes."""
    types, item = tensor_types(model), tiny.named(model, name)
    found = {types[tensor] for tensor in [*item.input, *item.output]}
    return found - {TensorProto.INT64}


def test_the_trunk_is_half_and_its_borders_are_not() -> None:
    converted = fp16_graph.convert(tiny.tiny_embedder())
    half = {"stem", "relu6", "depthwise", "pool", "squeeze", "relu", "excite", "sigmoid", "gate"}
    assert converted.trunk == half | {"residual", "expand", "last_relu"}
    for name in converted.trunk:
        assert types_of(converted.model, name) == {TensorProto.FLOAT16}, name
    for name in ("centre", "normalise", "global_pool", "embedding", "features"):
        assert types_of(converted.model, name) == {TensorProto.FLOAT}, name
    assert types_of(converted.model, "cast") == {TensorProto.UINT8, TensorProto.FLOAT}


def test_the_original_is_left_alone_and_constants_are_not_kept_twice() -> None:
    model = tiny.tiny_embedder()
    before = model.SerializeToString()
    converted = fp16_graph.convert(model).model
    assert model.SerializeToString() == before
    read = {name for item in converted.graph.node for name in item.input}
    assert {tensor.name for tensor in converted.graph.initializer} <= read
    assert list(converted.graph.input) == list(model.graph.input)
    assert list(converted.graph.output) == list(model.graph.output)


def test_only_three_casts_are_needed() -> None:
    """uint8 to float, into the trunk, out of it: each a copy of the whole tensor on a GPU."""
    converted = fp16_graph.convert(tiny.tiny_embedder()).model
    assert [item.op_type for item in converted.graph.node].count("Cast") == 3


def test_batch_norm_is_folded_in_fp32() -> None:
    model = tiny.tiny_embedder(batch_norm=True)
    folded = copy.deepcopy(model)
    from unified_embedding.engine.tensorrt import batchnorm

    batchnorm.fold(folded.graph)
    assert "BatchNormalization" not in {item.op_type for item in folded.graph.node}
    difference = run(model, tiny.pixels()) - run(folded, tiny.pixels())
    assert np.abs(difference).max() < 1e-5
    converted = fp16_graph.convert(model)
    assert "expand" in converted.trunk
    assert np.abs(run(converted.model, tiny.pixels()) - run(model, tiny.pixels())).max() < 0.02


def test_a_batch_norm_of_its_own_is_named() -> None:
    model = tiny.tiny_embedder(batch_norm=True)
    tiny.named(model, "normalised").input[0] = "residual"
    for name in ("gain", "shift", "average", "variance"):
        tiny.set_constant(model, name, np.ones(8, np.float32))
    with pytest.raises(
        Fp16Error,
        match=r"'normalised' \(BatchNormalization\) does not follow a convolution of its own",
    ):
        fp16_graph.convert(model)


def test_a_permute_before_the_cast_is_named() -> None:
    with pytest.raises(Fp16Error, match=r"'early_permute' \(Transpose\) reads the uint8 input"):
        fp16_graph.convert(tiny.permute_before_cast())


def test_a_weight_beyond_half_is_named() -> None:
    model = tiny.tiny_embedder()
    tiny.set_constant(model, "expand.bias", np.full(tiny.DIM, 1e5, np.float32))
    with pytest.raises(Fp16Error, match=r"'expand' \(Conv\): its constant 'expand.bias' .*65504"):
        fp16_graph.convert(model)


def test_a_clamp_without_upper_bound_stays_one() -> None:
    model = tiny.tiny_embedder()
    tiny.set_constant(model, "high", np.array(np.finfo(np.float32).max, np.float32))
    converted = fp16_graph.convert(model).model
    assert np.isposinf(tiny.constant(converted, "high.half"))
    assert np.isfinite(run(converted, tiny.pixels())).all()


def test_weights_lost_to_zero_are_counted_by_node() -> None:
    model = tiny.tiny_embedder()
    weight = tiny.constant(model, "squeeze.weight").copy()
    weight[0, :4] = 1e-9
    tiny.set_constant(model, "squeeze.weight", weight)
    (lost,) = fp16_graph.convert(model).underflows
    assert (lost.node, lost.share) == ("squeeze", 4 / 32)
    assert lost.largest == pytest.approx(1e-9)


def test_constant_nodes_are_taken_like_initialisers() -> None:
    model = tiny.tiny_embedder()
    tensor = next(item for item in model.graph.initializer if item.name == "low")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["low"], value=tensor))
    model.graph.initializer.remove(tensor)
    assert types_of(fp16_graph.convert(model).model, "relu6") == {TensorProto.FLOAT16}


def test_nodes_without_a_name_get_one() -> None:
    model = tiny.tiny_embedder()
    for item in model.graph.node:
        item.name = ""
    assert "Conv.stem" in fp16_graph.convert(model).trunk


def test_what_cannot_be_an_fp16_trunk_is_refused() -> None:
    branches = tiny.tiny_embedder()
    body = helper.make_graph([], "body", [], [])
    tiny.named(branches, "relu").attribute.append(helper.make_attribute("body", body))
    with pytest.raises(Fp16Error, match=r"'relu' \(Relu\) holds a graph of its own"):
        fp16_graph.convert(branches)

    flat = tiny.tiny_embedder()
    for item in flat.graph.node:
        if item.op_type == "Conv":
            item.op_type, kept = "Identity", item.input[0]
            del item.input[:], item.attribute[:]
            item.input.append(kept)
    with pytest.raises(Fp16Error, match="no convolution"):
        fp16_graph.convert(flat)

    head_heavy = tiny.tiny_embedder()
    large = np.zeros((tiny.DIM, tiny.DIM * 100), np.float32)
    head_heavy.graph.initializer.append(onnx.numpy_helper.from_array(large, "large"))
    head_heavy.graph.node.append(tiny.node("MatMul", "embedding large", "unused"))
    with pytest.raises(Fp16Error, match="of the weights lie between"):
        fp16_graph.convert(head_heavy)

    unpooled = tiny.tiny_embedder()
    unpooled.graph.node.append(tiny.node("Identity", "last_relu", "map"))
    unpooled.graph.output.append(helper.make_tensor_value_info("map", 1, ["N", tiny.DIM, 8, 8]))
    with pytest.raises(Fp16Error, match=r"'map' \(Identity\) writes an output .* inside the trunk"):
        fp16_graph.convert(unpooled)
