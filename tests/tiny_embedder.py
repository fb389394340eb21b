"""A small embedder graph with everything the released ones have: for tests of the build step."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from unified_embedding import onnx_file
from unified_embedding.image import Preprocessing
from unified_embedding.spec import EmbedderSpec

SIDE = 16
DIM = 16


def tiny_embedder(seed: int = 0, batch_norm: bool = False) -> onnx.ModelProto:
    """Normalise, strided and depthwise convolution, residual, squeeze-and-excitation, LayerNorm.

    Nodes are named after what they do. `batch_norm` puts an unfolded one behind "expand".
    """
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        fan_in = int(np.prod(shape[1:])) or 1
        return (rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)

    constants = {
        "mean": np.full(3, 127, np.float32),
        "std": np.full(3, 128, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "spatial": np.array([2, 3]),
        "scale": np.ones(DIM, np.float32),
        "stem.weight": weights(8, 3, 3, 3),
        "stem.bias": weights(8),
        "depthwise.weight": weights(8, 1, 3, 3),
        "squeeze.weight": weights(4, 8, 1, 1),
        "excite.weight": weights(8, 4, 1, 1),
        "expand.weight": weights(DIM, 8, 1, 1),
        "expand.bias": weights(DIM),
    }
    strided = {"strides": [2, 2], "pads": [0, 0, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        node("Cast", "pixels", "cast", to=TensorProto.FLOAT),
        node("Sub", "cast mean", "centre"),
        node("Div", "centre std", "normalise"),
        node("Transpose", "normalise", "permute", perm=[0, 3, 1, 2]),
        node("Conv", "permute stem.weight stem.bias", "stem", **strided),
        node("Clip", "stem low high", "relu6"),
        node("Conv", "relu6 depthwise.weight", "depthwise", group=8, pads=[1, 1, 1, 1]),
        node("ReduceMean", "depthwise spatial", "pool", keepdims=1),
        node("Conv", "pool squeeze.weight", "squeeze"),
        node("Relu", "squeeze", "relu"),
        node("Conv", "relu excite.weight", "excite"),
        node("Sigmoid", "excite", "sigmoid"),
        node("Mul", "depthwise sigmoid", "gate"),
        node("Add", "gate relu6", "residual"),
        node("Conv", "residual expand.weight expand.bias", "expand"),
        node("Relu", "normalised" if batch_norm else "expand", "last_relu"),
        node("ReduceMean", "last_relu spatial", "global_pool", keepdims=0),
        node("LayerNormalization", "global_pool scale", "embedding", axis=-1, epsilon=1e-5),
        node("Identity", "embedding", "features"),
    ]
    if batch_norm:
        constants |= {
            "gain": (1 + rng.random(DIM)).astype(np.float32),
            "shift": weights(DIM),
            "average": weights(DIM),
            "variance": (0.5 + rng.random(DIM)).astype(np.float32),
        }
        norm = node("BatchNormalization", "expand gain shift average variance", "normalised")
        nodes.insert(-4, norm)
    return _model(nodes, constants, DIM)


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], dim: int
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", dim])
            for name in ("embedding", "features")
        ],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


def projecting_embedder(seed: int, share: float = 1.0, dim: int = 64) -> onnx.ModelProto:
    """LayerNorm of random projections, whose signs tell like pictures from unlike ones.

    `share` of the pixels are looked at: fewer find less.
    """
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(3 * SIDE * SIDE, dim)).astype(np.float32)
    weights *= rng.random((len(weights), 1)) < share
    weights -= weights.mean(axis=0)  # Brightness alone is no likeness.
    constants = {
        "mean": np.full(3, 127, np.float32),
        "std": np.full(3, 128, np.float32),
        "weights": weights,
        "scale": np.ones(dim, np.float32),
    }
    nodes = [
        node("Cast", "pixels", "cast", to=TensorProto.FLOAT),
        node("Sub", "cast mean", "centre"),
        node("Div", "centre std", "normalise"),
        node("Transpose", "normalise", "permute", perm=[0, 3, 1, 2]),
        node("Flatten", "permute", "flat"),
        node("MatMul", "flat weights", "project"),
        node("LayerNormalization", "project scale", "embedding", axis=-1, epsilon=1e-5),
        node("Identity", "embedding", "features"),
    ]
    return _model(nodes, constants, dim)


def node(operation: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    """A node that bears the name of its output; inputs are separated by blanks."""
    return helper.make_node(operation, inputs.split(), [output], name=output, **attributes)


def named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node called `name`."""
    return next(item for item in model.graph.node if item.name == name)


def set_constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    """Replace an initialiser."""
    tensor = next(item for item in model.graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The values of an initialiser."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def permute_before_cast() -> onnx.ModelProto:
    """The same computation, with the permute first: TensorRT cannot parse that."""
    model = tiny_embedder()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(
        [
            node("Transpose", "pixels", "early_permute", perm=[0, 3, 1, 2]),
            node("Cast", "early_permute", "cast", to=TensorProto.FLOAT),
            *nodes[1:3],
            *nodes[4:],
        ]
    )
    named(model, "stem").input[0] = "normalise"
    for name in ("mean", "std"):
        set_constant(model, name, constant(model, name).reshape(3, 1, 1))
    onnx.checker.check_model(model, full_check=True)
    return model


def pixels(count: int = 4, seed: int = 1) -> np.ndarray:
    """Random pictures, uint8 [count, SIDE, SIDE, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def spec_of(model: onnx.ModelProto, size: int = SIDE, dim: int = DIM) -> EmbedderSpec:
    """A spec that describes `model`."""
    return EmbedderSpec(
        name="tiny",
        trunk="none",
        dim=dim,
        weights="random",
        graph_sha256=onnx_file.graph_sha256(model),
        preprocessing=Preprocessing(size=size),
        license="Apache-2.0",
    )
