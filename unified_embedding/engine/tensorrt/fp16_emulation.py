"""What FP16 does to an embedder, computed on a CPU.

onnxruntime's CPU provider does not run a half graph in half: it computes in fp32 and removes
the casts between operations, so that only the weights are rounded. On a deep trunk that misses a
third of the flipped bits. Here every tensor of the trunk is rounded to half where a GPU would
store it, and sums accumulate in fp32, as tensor cores do.
"""

from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unified_embedding.engine.tensorrt.fp16_graph import FP16_MAX, Fp16Graph
from unified_embedding.errors import Fp16Error
from unified_embedding.spec import INPUT

HEADROOM: Final = 2.0
"""Pictures that were not seen may reach this many times the peak that was."""

_EXACT: Final = ".exact"


def emulate(graph: Fp16Graph) -> onnx.ModelProto:
    """The same computation with fp32 types, rounded to half wherever `graph` stores a half."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        written = [name for name in node.output if name in graph.half_tensors]
        for position, name in enumerate(node.output):
            if name in graph.half_tensors:
                node.output[position] = name + _EXACT
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and written:
                attribute.i = TensorProto.FLOAT
        model.graph.node.append(node)
        for name in written:
            model.graph.node.extend(_rounded(name + _EXACT, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def peaks(graph: Fp16Graph, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Largest |value|, before rounding, that each trunk node writes; by node name.

    Args:
        graph: the converted embedder.
        pixels: uint8 [N, S, S, 3] of real pictures.
    """
    model = emulate(graph)
    writers = {
        node.output[0].removesuffix(_EXACT): node.name
        for node in model.graph.node
        if node.output[0].endswith(_EXACT)
    }
    for name in writers:
        absolute, peak = f"{name}.absolute", f"{name}.peak"
        model.graph.node.append(helper.make_node("Abs", [name + _EXACT], [absolute]))
        model.graph.node.append(helper.make_node("ReduceMax", [absolute], [peak], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, []))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run([f"{name}.peak" for name in writers], {INPUT: pixels})
    return {writer: float(value) for writer, value in zip(writers.values(), values, strict=True)}


def check_peaks(found: dict[str, float]) -> tuple[str, float]:
    """The node with the largest value, and that value.

    Raises:
        Fp16Error: a node comes within `HEADROOM` of the end of FP16, or writes NaN.
    """
    for node, peak in found.items():
        if not peak * HEADROOM < FP16_MAX:
            raise Fp16Error(
                f"node {node!r} writes values up to {peak:g}; FP16 ends at {FP16_MAX:g} and "
                f"{HEADROOM:g} times the peak must fit"
            )
    return max(found.items(), key=lambda item: item[1])


def _rounded(exact: str, name: str) -> list[onnx.NodeProto]:
    half = f"{name}.rounded"
    return [
        helper.make_node("Cast", [exact], [half], name=half, to=TensorProto.FLOAT16),
        helper.make_node("Cast", [half], [name], name=f"{name}.back", to=TensorProto.FLOAT),
    ]
