"""BatchNorm folded into the convolution before it, in fp32."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from unified_embedding.engine.tensorrt.onnx_nodes import consumers, described, initialisers, label


def fold(graph: onnx.GraphProto) -> None:
    """Fold every BatchNormalization of `graph` in place.

    Folding in half would round the weights twice. The exporter folds already; this serves
    graphs that come from elsewhere.

    Raises:
        ValueError: a BatchNormalization does not follow a convolution of its own, whose weights
            are constants.
    """
    constants = initialisers(graph)
    producers = {name: node for node in graph.node for name in node.output}
    readers = consumers(graph)
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(norm.input[0])
        alone = conv is not None and len(readers[conv.output[0]]) == 1
        if conv is None or conv.op_type != "Conv" or not alone or conv.input[1] not in constants:
            raise ValueError(
                f"{described(norm)} does not follow a convolution of its own, so it cannot be "
                "folded in fp32; fold it before the export"
            )
        _fold_one(graph, conv, norm, constants)


def _fold_one(
    graph: onnx.GraphProto,
    conv: onnx.NodeProto,
    norm: onnx.NodeProto,
    constants: dict[str, NDArray[Any]],
) -> None:
    scale, shift, mean, variance = (constants[name].astype(np.float64) for name in norm.input[1:])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    weight = constants[conv.input[1]].astype(np.float64)
    bias = constants[conv.input[2]].astype(np.float64) if len(conv.input) > 2 else 0.0
    folded = {
        f"{label(norm)}.weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
        f"{label(norm)}.bias": (bias - mean) * factor + shift,
    }
    for name, values in folded.items():
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    merged = helper.make_node(
        "Conv", [conv.input[0], *folded], [norm.output[0]], name=conv.name, domain=conv.domain
    )
    merged.attribute.extend(conv.attribute)
    conv.CopyFrom(merged)
    graph.node.remove(norm)
