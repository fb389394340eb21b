"""The FP16 graph that TensorRT compiles, made from the fp32 ONNX that every engine starts from.

TensorRT 11 has no precision flag: what runs in half is what the graph types as half. The
trunk, from the first convolution to the last feature map, becomes half. Cast and normalisation
before it, and pooling and LayerNorm behind it, stay in fp32, where they cost nothing.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from unified_embedding.engine.tensorrt import batchnorm
from unified_embedding.engine.tensorrt.onnx_nodes import (
    consumers,
    described,
    drop_unused_initialisers,
    initialisers,
    label,
    lift_constants,
)
from unified_embedding.errors import Fp16Error
from unified_embedding.spec import INPUT

FP16_MAX: Final = 65504.0
"""Largest finite value of IEEE 754 binary16."""

_CONVOLUTIONS: Final = ("Conv", "ConvTranspose")
# What may follow the last convolution and still belong to its feature map.
_POINTWISE: Final = (
    *("Add", "Mul", "Sub", "Div", "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish"),
    *("Tanh", "Elu", "LeakyRelu", "PRelu", "Gelu", "Erf", "Swish", "Mish", "Softplus", "Identity"),
)


@dataclass(frozen=True)
class Underflow:
    """Weights of one node that are not zero in fp32 and zero in half.

    Attributes:
        node: the node's name.
        share: of the tensor's values, in [0, 1].
        largest: the largest value that was lost.
    """

    node: str
    share: float
    largest: float


@dataclass(frozen=True)
class Fp16Graph:
    """The converted model and what the conversion cost.

    Attributes:
        model: half trunk between fp32 borders, same inputs and outputs as before.
        trunk: names of the nodes that run in half.
        half_tensors: names of the tensors that are half, constants not counted.
        underflows: nodes that lost weights to zero.
    """

    model: onnx.ModelProto
    trunk: frozenset[str]
    half_tensors: frozenset[str]
    underflows: list[Underflow]


def convert(model: onnx.ModelProto) -> Fp16Graph:
    """Convert an embedder's fp32 ONNX; `model` is left as it is.

    Raises:
        Fp16Error: the input is not cast before anything else, there is no convolution, a
            weight exceeds the range of half, most weights lie behind the last convolution,
            or a node cannot take half. The message names the node.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    check_cast_first(half.graph)
    _check_flat(half.graph)
    lift_constants(half.graph)
    try:
        batchnorm.fold(half.graph)
    except ValueError as error:
        raise Fp16Error(str(error)) from error
    _name_nodes(half.graph)
    trunk = trunk_nodes(half.graph)
    _check_share(half.graph, trunk)
    _check_outputs(half.graph, trunk)
    converter = _Converter(half, trunk)
    converter.run()
    _check_types(half)
    return Fp16Graph(half, trunk, frozenset(converter.halves), converter.underflows)


def check_cast_first(graph: onnx.GraphProto) -> None:
    """Raise Fp16Error unless the uint8 input is read by a cast to float and by nothing else.

    TensorRT takes uint8 at the network's border only and converts it to a float type at once;
    a permute before the cast stops its parser.
    """
    readers = consumers(graph)[INPUT]
    if not readers:
        raise Fp16Error(f"no node reads the input {INPUT!r}")
    for node in readers:
        to = next((a.i for a in node.attribute if a.name == "to"), None)
        if node.op_type != "Cast" or to not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            raise Fp16Error(
                f"{described(node)} reads the uint8 input {INPUT!r} before it is cast to float; "
                "TensorRT cannot: cast first, then permute"
            )


def _check_flat(graph: onnx.GraphProto) -> None:
    """Raise Fp16Error for a node with a graph of its own (If, Loop, Scan)."""
    for node in graph.node:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise Fp16Error(f"{described(node)} holds a graph of its own; export without branches")


def trunk_nodes(graph: onnx.GraphProto) -> frozenset[str]:
    """Names of the nodes from the first convolution to the last feature map.

    That is every convolution, everything on a path between two of them (squeeze-and-excitation
    included), and the pointwise nodes that follow the last one.

    Raises:
        Fp16Error: there is no convolution.
    """
    if not any(node.op_type in _CONVOLUTIONS for node in graph.node):
        raise Fp16Error("the graph has no convolution, so nothing of it would run in FP16")
    behind: set[str] = set()  # Tensors that a convolution leads to.
    for node in graph.node:
        if node.op_type in _CONVOLUTIONS or behind.intersection(node.input):
            behind.update(node.output)
    before: set[str] = set()  # Tensors that lead to a convolution.
    for node in reversed(graph.node):
        if node.op_type in _CONVOLUTIONS or before.intersection(node.output):
            before.update(node.input)
    trunk: set[str] = set()
    head: set[str] = set()  # Tensors of the pooling and what follows it.
    for node in graph.node:
        if not behind.intersection(node.output):
            continue
        inside = node.op_type in _CONVOLUTIONS or before.intersection(node.output)
        if inside or (node.op_type in _POINTWISE and not head.intersection(node.input)):
            trunk.add(node.name)
        else:
            head.update(node.output)
    return frozenset(trunk)


class _Converter:
    """Retypes the trunk of one graph and puts casts on its borders."""

    def __init__(self, model: onnx.ModelProto, trunk: frozenset[str]) -> None:
        self.graph = model.graph
        self.trunk = trunk
        self.floats = _float_tensors(model)
        self.constants = initialisers(model.graph)
        self.halves: set[str] = set()  # Tensors that are half by now.
        self.made: set[str] = set()  # Casts and constants added so far.
        self.underflows: list[Underflow] = []

    def run(self) -> None:
        nodes = list(self.graph.node)
        del self.graph.node[:]
        for node in nodes:
            retyped = self._to_half if node.name in self.trunk else self._to_float
            for position, name in enumerate(node.input):
                if name in self.floats:
                    node.input[position] = retyped(name, node)
            if node.name in self.trunk:
                _retype_cast(node)
                self.halves.update(self.floats.intersection(node.output))
            self.graph.node.append(node)
        del self.graph.value_info[:]
        drop_unused_initialisers(self.graph)

    def _to_half(self, name: str, node: onnx.NodeProto) -> str:
        if name in self.constants:
            return self._half_constant(name, node)
        return name if name in self.halves else self._cast(name, TensorProto.FLOAT16)

    def _to_float(self, name: str, _: onnx.NodeProto) -> str:
        return self._cast(name, TensorProto.FLOAT) if name in self.halves else name

    def _cast(self, name: str, to: int) -> str:
        made = f"{name}.{'half' if to == TensorProto.FLOAT16 else 'float'}"
        if made not in self.made:
            self.graph.node.append(helper.make_node("Cast", [name], [made], name=made, to=to))
            self.made.add(made)
            if to == TensorProto.FLOAT16:
                self.halves.add(made)
        return made

    def _half_constant(self, name: str, node: onnx.NodeProto) -> str:
        made = f"{name}.half"
        if made not in self.made:
            values = self.constants[name]
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            self._check_range(values, half, name, node)
            self.graph.initializer.append(numpy_helper.from_array(half, made))
            self.made.add(made)
        return made

    def _check_range(
        self, values: NDArray[Any], half: NDArray[np.float16], name: str, node: onnx.NodeProto
    ) -> None:
        # A clamp at FLT_MAX is how exporters write "no bound"; in half, infinity says the same.
        if node.op_type != "Clip" and not np.isfinite(half).all():
            raise Fp16Error(
                f"{described(node)}: its constant {name!r} reaches {np.abs(values).max():g}; "
                f"FP16 ends at {FP16_MAX:g}"
            )
        lost = np.abs(values[(half == 0) & (values != 0)])
        if lost.size:
            share = lost.size / values.size
            self.underflows.append(Underflow(label(node), share, float(lost.max())))


def _float_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """Names of all fp32 tensors. Raises Fp16Error where a type cannot be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for node in model.graph.node:
        unknown = [name for name in node.output if name and name not in types]
        if unknown:
            raise Fp16Error(f"{described(node)}: the type of its output {unknown[0]!r} is unknown")
    return frozenset(name for name, elem_type in types.items() if elem_type == TensorProto.FLOAT)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give nodes unique names, so that they can be told apart and named in messages."""
    seen: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}.{node.output[0]}"
        seen.add(node.name)


def _retype_cast(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _check_share(graph: onnx.GraphProto, trunk: frozenset[str]) -> None:
    """Refuse a graph whose weights mostly lie outside the trunk, for instance a transformer."""
    sizes = {name: values.size for name, values in initialisers(graph).items()}
    inside = sum(sizes.get(n, 0) for node in graph.node if node.name in trunk for n in node.input)
    if 2 * inside < sum(sizes.values()):
        raise Fp16Error(
            f"only {inside / sum(sizes.values()):.0%} of the weights lie between the first and "
            "the last convolution; this FP16 conversion is for convolutional trunks"
        )


def _check_outputs(graph: onnx.GraphProto, trunk: frozenset[str]) -> None:
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        if node.name in trunk and outputs.intersection(node.output):
            raise Fp16Error(
                f"{described(node)} writes an output of the graph from inside the trunk; "
                "pooling and LayerNorm belong behind the last convolution"
            )


def _check_types(model: onnx.ModelProto) -> None:
    """Let ONNX verify every operation's types. Raises Fp16Error; its message names the node."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Fp16Error(f"the FP16 graph is not valid ONNX: {error}") from error
