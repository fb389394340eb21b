"""An embedder's graph with its convolutions in 8 bits, whose codes agree with the float one's.

No training and no labels: pictures pass through the float graph and the quantised one, layer by
layer. Each layer's weights are rounded for the quantised inputs that it will meet (`rounding`),
and its bias makes up for what is left in the mean (Nagel et al., ICCV 2019, arXiv 1906.04721).
Activations have 8 bits. Weights have 7: CPUs without VNNI add two products in 16 bits, which
overflow with 8 (NNCF's `OverflowFix` does the same). So one file serves every CPU.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from unified_embedding.errors import BuildError, shown
from unified_embedding.export.rounding import rounded

WEIGHT_BITS: Final = 7
_POSITIONS: Final = 64  # of a layer's map in each picture, at most, that it is fitted at
_BATCH: Final = 16
_VALUES: Final = 200_000
_FACTORS: Final = np.linspace(0.4, 1.0, 31)

Array = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """The values that an activation is rounded to: `scale * (integer - zero)`.

    Attributes:
        scale: one step.
        zero: the integer that stands for 0; the integers are of its type.
    """

    scale: np.float32
    zero: np.uint8 | np.int8

    def rounded(self, values: Array) -> NDArray[np.float32]:
        """float32 `values` as they come back from the integers."""
        bounds, zero = np.iinfo(self.zero.dtype), np.float32(self.zero)
        integers = np.clip(np.rint(values / self.scale) + zero, bounds.min, bounds.max)
        return np.asarray((integers - zero) * self.scale, np.float32)


def grid_for(values: NDArray[np.float32]) -> Grid:
    """The grid with the least squared error over `values`, none where they lie on one.

    Values of both signs get a signed grid around 0, which every CPU multiplies as fast.
    """
    pixels = _grid_of_pixels(values)
    if pixels is not None:
        return pixels
    zero = np.uint8(0) if values.min() >= 0 else np.int8(0)
    flat = values.ravel()
    flat = flat[:: max(1, len(flat) // _VALUES)]
    widest = max(float(np.abs(values).max()), 1e-8) / np.iinfo(zero.dtype).max
    grids = [Grid(np.float32(factor * widest), zero) for factor in _FACTORS]
    errors = [float(np.square(grid.rounded(flat) - flat).mean()) for grid in grids]
    return grids[int(np.argmin(errors))]


def quantised(
    model: onnx.ModelProto,
    pixels: NDArray[np.uint8],
    weight_bits: int = WEIGHT_BITS,
    progress: Callable[[list[onnx.NodeProto]], Iterable[onnx.NodeProto]] = iter,
) -> onnx.ModelProto:
    """`model` with QuantizeLinear and DequantizeLinear before its convolutions.

    What is no convolution stays in floating point: it costs little, and behind the pooling an
    error would reach the embedding undiminished.

    Args:
        model: an embedder's graph, constants as initialisers; it is not changed.
        pixels: uint8 [N, S, S, 3], pictures like those to be served.
        weight_bits: of a weight; 8 needs a CPU with VNNI.
        progress: shows how far it is, around the nodes.

    Raises:
        BuildError: the graph has no convolution, or a node's answers are not one for each picture.
    """
    if not any(node.op_type == "Conv" for node in model.graph.node):
        raise BuildError("the graph has no convolution: there is nothing to quantise")
    walk = _Walk(model, pixels, 2 ** (weight_bits - 1) - 1)
    for node in progress(list(model.graph.node)):
        walk.take(node)
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:]
    del found.graph.initializer[:]
    del found.metadata_props[:]
    found.graph.node.extend(walk.nodes)
    found.graph.initializer.extend(walk.constants())
    onnx.checker.check_model(found, full_check=True)
    return found


class _Walk:
    """Both graphs, run side by side over all pictures, one node at a time."""

    def __init__(self, model: onnx.ModelProto, pixels: NDArray[np.uint8], largest: int) -> None:
        graph = model.graph
        self._header = {"opset_imports": model.opset_import, "ir_version": model.ir_version}
        self._largest = largest
        self._constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._weights: dict[str, Array] = {}
        self._exact: dict[str, Array] = {graph.input[0].name: pixels}
        self._quantised = dict(self._exact)
        self._unread = Counter(name for node in graph.node for name in node.input)
        # What later nodes read in a tensor's place: its quantised form, once there is one.
        self._renamed: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def take(self, node: onnx.NodeProto) -> None:
        """Run `node` in both graphs, and write down what stands for it in the quantised one.

        What reads constants alone becomes constants.
        """
        exact = self._run(node, self._exact)
        if not any(name in self._exact for name in node.input):
            self._constants |= exact
            return
        written = onnx.NodeProto()
        written.CopyFrom(node)
        if node.op_type == "Conv":
            if node.input[0] not in self._renamed:
                self._quantise_activation(node.input[0])
            written.input[0] = self._renamed[node.input[0]]
            self._quantise_weights(written, exact[node.output[0]])
        else:
            written.input[:] = [self._renamed.get(name, name) for name in node.input]
        self.nodes.append(written)
        self._quantised |= self._run(written, self._quantised)
        self._exact |= exact
        for name in node.input:
            self._unread[name] -= 1
            if not self._unread[name]:
                for values in (self._exact, self._quantised):
                    values.pop(name, None)
                self._quantised.pop(self._renamed.get(name, name), None)

    def constants(self) -> list[onnx.TensorProto]:
        """The initialisers that `nodes` read."""
        read = dict.fromkeys(name for node in self.nodes for name in node.input)
        known = [name for name in read if name in self._constants]
        return [numpy_helper.from_array(self._constants[name], name) for name in known]

    def _quantise_activation(self, name: str) -> None:
        values = self._quantised[name]
        grid = grid_for(values)
        scale, zero, integers, back = _names(name, "scale", "zero", "q", "dq")
        self._constants |= {scale: np.array(grid.scale), zero: np.array(grid.zero)}
        self.nodes += [
            helper.make_node("QuantizeLinear", [name, scale, zero], [integers], integers),
            helper.make_node("DequantizeLinear", [integers, scale, zero], [back], back),
        ]
        self._renamed[name] = back
        self._quantised[back] = grid.rounded(values)

    def _quantise_weights(self, node: onnx.NodeProto, wanted: NDArray[np.float32]) -> None:
        """Give `node` integer weights and a bias with which its mean answers are those `wanted`."""
        name = node.input[1]
        weights = self._constants[name]
        groups = _attributes(node).get("group", 1)
        moments, inputs, answers = _moments(
            node, weights.shape, self._quantised[node.input[0]], wanted
        )
        integers, scales = rounded(
            weights.reshape(groups, -1, moments.shape[1]), moments, self._largest
        )
        back = integers * scales[:, :, None]
        scale, zero, held, found, bias = _names(name, "scale", "zero", "q", "dq", "bias")
        self._constants |= {
            held: integers.reshape(weights.shape),
            scale: scales.ravel(),
            zero: np.zeros(scales.size, np.int8),
            bias: (answers - (back @ inputs[:, :, None]).ravel()).astype(np.float32),
        }
        self._weights[found] = back.reshape(weights.shape)
        self.nodes.append(
            helper.make_node("DequantizeLinear", [held, scale, zero], [found], found, axis=0)
        )
        node.input[:] = [node.input[0], found, bias]

    def _run(self, node: onnx.NodeProto, values: dict[str, Array]) -> dict[str, Array]:
        """All answers of `node`: over all pictures, or once if it reads constants alone."""
        constants = {**self._constants, **self._weights}
        read = dict.fromkeys(name for name in node.input if name)
        moving = [name for name in read if name in values]
        types = {name: helper.np_dtype_to_tensor_dtype(values[name].dtype) for name in moving}
        answers = [name for name in node.output if name]
        graph = helper.make_graph(
            [node],
            "node",
            [helper.make_tensor_value_info(name, types[name], None) for name in moving],
            [onnx.ValueInfoProto(name=name) for name in answers],
            [numpy_helper.from_array(constants[n], n) for n in read if n not in values],
        )
        session = onnxruntime.InferenceSession(
            helper.make_model(graph, **self._header).SerializeToString(),
            providers=["CPUExecutionProvider"],
        )
        if not moving:
            return dict(zip(answers, session.run(None, {}), strict=True))
        found: list[list[Array]] = []
        for start in range(0, len(values[moving[0]]), _BATCH):
            part = {name: values[name][start : start + _BATCH] for name in moving}
            found.append(session.run(None, part))
            rows = len(part[moving[0]])
            for name, array in zip(answers, found[-1], strict=True):
                if array.shape[:1] != (rows,):
                    raise BuildError(
                        f"node {shown(node.name)} ({node.op_type}): {shown(name)} has shape "
                        f"{array.shape} for {rows} pictures; make quantise needs a row for each: "
                        "export the graph with fixed shapes"
                    )
        columns = zip(*found, strict=True)
        return {n: np.concatenate(parts) for n, parts in zip(answers, columns, strict=True)}


def _moments(
    node: onnx.NodeProto,
    shape: tuple[int, ...],
    images: NDArray[np.float32],
    wanted: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Second moments of a convolution's inputs, at positions drawn anew for each batch.

    Args:
        node: the convolution.
        shape: of its weights.
        images: its input [N, C, H, W].
        wanted: its exact answers [N, O, h, w].

    Returns:
        For G groups of K inputs and for O outputs: covariances [G, K, K], means [G, K] of the
        inputs, means [O] of the exact answers.
    """
    attributes = _attributes(node)
    groups, kernel = attributes.get("group", 1), shape[2:]
    inputs = shape[1] * kernel[0] * kernel[1]
    draw = np.random.default_rng(0)
    squares = np.zeros((groups, inputs, inputs))
    sums, answers, count = np.zeros((groups, inputs)), np.zeros(shape[0]), 0
    for start in range(0, len(images), _BATCH):
        places = draw.permutation(wanted.shape[2] * wanted.shape[3])[:_POSITIONS]
        rows, columns = np.divmod(places, wanted.shape[3])
        patches = _patches(images[start : start + _BATCH], attributes, kernel, rows, columns)
        # [N, P, C, k] -> [G, N * P, K]
        grouped = patches.reshape(-1, groups, inputs).transpose(1, 0, 2)
        squares += grouped.transpose(0, 2, 1) @ grouped
        sums += grouped.sum(axis=1)
        answers += wanted[start : start + _BATCH, :, rows, columns].sum(axis=(0, 2))
        count += grouped.shape[1]
    means = sums / count
    return squares / count - means[:, :, None] * means[:, None, :], means, answers / count


def _patches(
    images: NDArray[np.float32],
    attributes: dict[str, Any],
    kernel: tuple[int, ...],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.float32]:
    """What the kernel covers at output positions (rows, columns): [N, P, C, k]."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    down, across = attributes.get("strides", [1, 1])
    high, wide = attributes.get("dilations", [1, 1])
    padded = np.pad(images, ((0, 0), (0, 0), (top, bottom), (left, right)))
    parts = [
        padded[:, :, rows * down + i * high, columns * across + j * wide]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return np.asarray(np.stack(parts, axis=-1).transpose(0, 2, 1, 3))


def _grid_of_pixels(values: NDArray[np.float32]) -> Grid | None:
    """The grid that `values` lie on, when it is that of the integers 0 to 255, moved and scaled.

    Normalised pixels do, if mean and deviation are the same for each channel.
    """
    levels = np.unique(values[:_BATCH])
    if not 2 <= len(levels) <= 256 or levels[0] >= 0 or levels[-1] <= 0:
        return None
    scale = np.float32(np.diff(levels).min())
    zero = -np.float64(values.min()) / scale
    if not 0 <= round(zero) <= 255:
        return None
    grid = Grid(scale, np.uint8(round(zero)))
    return grid if np.allclose(grid.rounded(values), values, atol=1e-3 * float(scale)) else None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _names(tensor: str, *parts: str) -> list[str]:
    return [f"{tensor}/{part}" for part in parts]
