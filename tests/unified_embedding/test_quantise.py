"""8-bit convolutions: the file says what numpy says, and its codes stay near the float graph's."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

from tiny_embedder import SIDE, spec_of, tiny_embedder
from tiny_embedder import node as made
from tiny_embedder import pixels as some_pixels

from unified_embedding import onnx_file
from unified_embedding.errors import BuildError
from unified_embedding.export.quantise import Grid, grid_for, quantised
from unified_embedding.export.rounding import rounded
from unified_embedding.onnx_runner import on_onnxruntime
from unified_embedding.spec import INT8_FILE


def held(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def test_codes_stay_and_weights_have_seven_bits() -> None:
    model = tiny_embedder()
    found = quantised(model, some_pixels(64, 1))
    constants = held(found)
    for node in found.graph.node:
        if node.op_type == "Conv":
            image, weight = (producer(found, name) for name in node.input[:2])
            assert image.op_type == weight.op_type == "DequantizeLinear"
            integers = constants[weight.input[0]]
            assert integers.dtype == np.int8
            assert np.abs(integers.astype(int)).max() <= 63
    pixels = some_pixels(200, 2)
    exact = on_onnxruntime(model.SerializeToString())(pixels)
    rows = on_onnxruntime(found.SerializeToString(), optimised=False)(pixels)
    assert ((rows > 0) != (exact > 0)).mean() < 0.02
    plain = on_onnxruntime(plainly_rounded(model, found).SerializeToString(), optimised=False)
    assert np.square(rows - exact).mean() < 0.7 * np.square(plain(pixels) - exact).mean()


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def plainly_rounded(model: onnx.ModelProto, found: onnx.ModelProto) -> onnx.ModelProto:
    """`found` with each weight rounded to the nearest step and the biases as they were."""
    plain = onnx.ModelProto()
    plain.CopyFrom(found)
    before, now = held(model), held(found)
    for tensor in plain.graph.initializer:
        name, _, part = tensor.name.rpartition("/")
        if part == "q":
            weights = before[name]
            steps = np.abs(weights).reshape(len(weights), -1).max(axis=1) / 63
            steps = steps.reshape(-1, *[1] * (weights.ndim - 1))
            new = np.clip(np.rint(weights / steps), -63, 63).astype(np.int8)
        elif part == "scale" and name in before:
            new = np.abs(before[name]).reshape(len(before[name]), -1).max(axis=1) / np.float32(63)
        elif part == "bias":
            new = before.get(name.replace("weight", "bias"), np.zeros_like(now[tensor.name]))
        else:
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
    return plain


def test_pixels_lie_on_their_grid_exactly() -> None:
    values = ((np.arange(256, dtype=np.float32) - 127) / 128)[None].repeat(3, axis=0)
    grid = grid_for(values)
    assert grid == Grid(np.float32(1 / 128), np.uint8(127))
    assert np.array_equal(grid.rounded(values), values)


@pytest.mark.parametrize(("low", "kind"), [(0.0, np.uint8), (-3.0, np.int8)])
def test_a_grid_serves_the_many_values(low: float, kind: type) -> None:
    values = np.random.default_rng(0).uniform(low, 3, 100_000).astype(np.float32)
    grid = grid_for(values)
    assert grid.zero.dtype == kind
    assert np.abs(grid.rounded(values) - values).max() < 1.1 * grid.scale


def test_rounding_keeps_the_answers_better_than_to_the_nearest() -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(4000, 24)) @ draw.normal(size=(24, 24))
    weights = draw.normal(size=(1, 10, 24)).astype(np.float32)
    integers, scale = rounded(weights, np.cov(inputs.T, bias=True)[None], 7)
    assert np.abs(integers).max() <= 7
    nearest = np.clip(np.rint(weights / scale[:, :, None]), -7, 7)

    def error(found: np.ndarray) -> float:
        return float(np.square(inputs @ (found * scale[:, :, None] - weights)[0].T).mean())

    assert error(integers.astype(np.float32)) < 0.7 * error(nearest)


def test_a_graph_without_convolutions_is_refused() -> None:
    model = tiny_embedder()
    del model.graph.node[4:]
    with pytest.raises(BuildError, match="no convolution"):
        quantised(model, some_pixels(2, 0))


def test_nodes_of_two_answers_and_of_constants_alone() -> None:
    """What a convolution reads may come out of a Split, its weights out of other constants."""
    model = tiny_embedder()
    graph = model.graph
    nodes = list(graph.node)
    place = next(i for i, item in enumerate(nodes) if item.name == "depthwise")
    nodes[place].input[:] = ["joined", "halved"]
    nodes[place:place] = [
        made("Split", "relu6", "first", axis=1, num_outputs=2),
        made("Concat", "first second", "joined", axis=1),
        made("Add", "depthwise.weight depthwise.weight", "doubled"),
        made("Mul", "doubled half", "halved"),
    ]
    nodes[place].output.append("second")
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    onnx.checker.check_model(model, full_check=True)
    found, plain = (quantised(one, some_pixels(64, 1)) for one in (model, tiny_embedder()))
    assert {"doubled", "halved"}.isdisjoint(n.name for n in found.graph.node)
    pixels = some_pixels(20, 2)
    rows, wanted = (
        on_onnxruntime(one.SerializeToString(), optimised=False)(pixels) for one in (found, plain)
    )
    # The residual reads what is before the Split unrounded: a little differs.
    assert np.abs(rows - wanted).max() < 0.01


def test_a_node_without_a_row_for_each_picture_is_named() -> None:
    model = tiny_embedder()
    model.graph.node.insert(1, made("Shape", "cast", "sides"))
    with pytest.raises(BuildError, match=r"node 'sides' \(Shape\).*\(4,\) for 16 pictures"):
        quantised(model, some_pixels(16, 0))


def test_the_program(root: Path, tmp_path: Path) -> None:
    """Fits to "train", judges by "test", writes the file of this version."""
    pytest.importorskip("yaml", reason="the extra `quantise` is not installed")
    folder = tmp_path / "model"
    folder.mkdir()
    model = tiny_embedder()
    spec = spec_of(model)
    onnx_file.save(model, spec, folder)
    table = tmp_path / "manifest.csv"
    rows = []
    for number, pixels in enumerate(some_pixels(96, 5)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        split = ("train", "train", "test")[number % 3]
        rows.append({"image": f"{number}.png", "task": "shop", "split": split, "domain": "web"})
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    def program(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "build/quantise.py", "--model", str(folder), *more]
        env = {**os.environ, "COLUMNS": "200", "UNIFIED_EMBEDDING_DATA": str(tmp_path / "none")}
        return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)

    missing = program()
    assert missing.returncode == 1
    assert "make data" in missing.stdout
    assert not (folder / INT8_FILE).exists()
    done = program("--manifest", str(table), "--images", "64", "--held-out", "32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bits flipped, mean" in done.stdout
    found = onnx_file.load_quantised(folder, spec)
    assert found.graph.input[0].type.tensor_type.shape.dim[1].dim_value == SIDE
