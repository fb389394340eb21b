"""Small questions about an ONNX graph that several build steps ask."""

from collections import defaultdict
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def label(node: onnx.NodeProto) -> str:
    """How messages name a node: its name, else its first output."""
    return node.name or node.output[0]


def described(node: onnx.NodeProto) -> str:
    """A node's label with its operation, for error messages."""
    return f"node {label(node)!r} ({node.op_type})"


def consumers(graph: onnx.GraphProto) -> defaultdict[str, list[onnx.NodeProto]]:
    """The nodes that read each tensor, by the tensor's name."""
    found: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            found[name].append(node)
    return found


def initialisers(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """The graph's constants by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a tensor into initialisers, in place."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            graph.node.remove(node)


def drop_unused_initialisers(graph: onnx.GraphProto) -> None:
    """Remove constants that no node reads, in place."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
