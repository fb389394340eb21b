"""An embedder's ONNX graph as a torch module: the same weights, the same types.

Torch-TensorRT starts from torch; going through the hand-over file keeps one source of weights
and of precision, whichever front end translates them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from unified_embedding.engine.tensorrt.onnx_nodes import described

Operation = Callable[[list[Any], Mapping[str, Any]], Tensor]

_TYPES: Final = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
}


class OnnxModule(nn.Module):
    """Runs an ONNX graph node by node; traced by torch.export it becomes plain ATen operations.

    Args:
        model: a graph without branches, constants as initialisers (see `fp16_graph.convert`).

    Raises:
        ValueError: the graph holds an operation that is not among `OPERATIONS`; it is named.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        for node in model.graph.node:
            if node.op_type not in OPERATIONS:
                raise ValueError(
                    f"{described(node)} has no counterpart here; use FRONTEND=onnx, which takes "
                    "every operation that TensorRT's parser takes"
                )
        self._buffers_of: dict[str, str] = {}
        self._plain: dict[str, Any] = {}
        for index, tensor in enumerate(model.graph.initializer):
            values = numpy_helper.to_array(tensor)
            # Bounds, axes and shapes must be known while tracing.
            if values.ndim == 0 or np.issubdtype(values.dtype, np.integer):
                self._plain[tensor.name] = values.tolist()
            else:
                self.register_buffer(f"constant_{index}", torch.from_numpy(values.copy()))
                self._buffers_of[tensor.name] = f"constant_{index}"
        self._nodes = [
            (OPERATIONS[node.op_type], list(node.input), node.output[0], _attributes(node))
            for node in model.graph.node
        ]
        self._input = model.graph.input[0].name
        self._outputs = [output.name for output in model.graph.output]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Embed pixels uint8 [N, S, S, 3]; returns the graph's outputs in order."""
        values = {name: getattr(self, buffer) for name, buffer in self._buffers_of.items()}
        values |= {**self._plain, self._input: pixels}
        for operation, inputs, output, attributes in self._nodes:
            values[output] = operation([values[name] for name in inputs if name], attributes)
        return tuple(values[name] for name in self._outputs)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _convolution(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    image, weight, *bias = inputs
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):  # "same" padding of a strided layer, as in TensorFlow
        image, top, left = functional.pad(image, (left, right, top, bottom)), 0, 0
    return functional.conv2d(
        image,
        weight,
        bias[0] if bias else None,
        stride=attributes.get("strides", [1, 1]),
        padding=(top, left),
        dilation=attributes.get("dilations", [1, 1]),
        groups=attributes.get("group", 1),
    )


def _max_pool(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise ValueError(f"MaxPool with pads {attributes['pads']} has no counterpart here")
    return functional.max_pool2d(
        inputs[0], attributes["kernel_shape"], attributes.get("strides"), (top, left)
    )


def _mean(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    axes = attributes["axes"] if len(inputs) == 1 else inputs[1]
    keepdim = bool(attributes.get("keepdims", 1))
    return torch.mean(inputs[0], tuple(axes), keepdim=keepdim)


def _clip(inputs: list[Any], _: Mapping[str, Any]) -> Tensor:
    low, high = inputs[1:]
    return torch.clamp(inputs[0], low, high)


def _layer_norm(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    image, scale, *bias = inputs
    epsilon = attributes.get("epsilon", 1e-5)
    return functional.layer_norm(image, scale.shape, scale, bias[0] if bias else None, epsilon)


OPERATIONS: Final[Mapping[str, Operation]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Cast": lambda inputs, attributes: inputs[0].to(_TYPES[attributes["to"]]),
    "Clip": _clip,
    "Conv": _convolution,
    "Div": lambda inputs, _: inputs[0] / inputs[1],
    "GlobalAveragePool": lambda inputs, _: inputs[0].mean((2, 3), keepdim=True),
    "HardSigmoid": lambda inputs, _: functional.hardsigmoid(inputs[0]),
    "HardSwish": lambda inputs, _: functional.hardswish(inputs[0]),
    # A clone, not an alias: the engine needs two outputs.
    "Identity": lambda inputs, _: inputs[0].clone(),
    "LayerNormalization": _layer_norm,
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "MaxPool": _max_pool,
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "ReduceMean": _mean,
    "Relu": lambda inputs, _: functional.relu(inputs[0]),
    "Sigmoid": lambda inputs, _: torch.sigmoid(inputs[0]),
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Transpose": lambda inputs, attributes: inputs[0].permute(attributes["perm"]),
}
