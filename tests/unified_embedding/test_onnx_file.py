"""The hand-over file is refused unless graph, spec and stamped version belong together."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_embedder
from onnx import TensorProto, helper, numpy_helper

from unified_embedding import onnx_file
from unified_embedding.errors import SpecError
from unified_embedding.spec import ONNX_FILE, SPEC_FILE, VERSION_KEY, EmbedderSpec


def tiny_model(
    scale: float = 1.0,
    input_name: str = "pixels",
    dtype: int = TensorProto.UINT8,
    batch: int | str = "N",
    outputs: tuple[str, ...] = ("embedding", "features"),
) -> onnx.ModelProto:
    """A graph of embedder shape: sides 4, D = 8, the mean of a picture times `scale`."""
    weight = numpy_helper.from_array(np.full((1, 8), scale, np.float32), "weight")
    axes = numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Mul", ["column", "weight"], [outputs[0]]),
    ]
    nodes += [helper.make_node("Identity", [outputs[0]], [name]) for name in outputs[1:]]
    one = numpy_helper.from_array(np.array([1]), "one")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, dtype, [batch, 4, 4, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 8]) for n in outputs],
        [weight, axes, one],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def spec_of(model: onnx.ModelProto, size: int = 4, dim: int = 8) -> EmbedderSpec:
    return tiny_embedder.spec_of(model, size, dim)


def test_save_then_load_gives_the_same_graph_and_spec(tmp_path: Path) -> None:
    model = tiny_model()
    onnx_file.save(model, spec_of(model), tmp_path)
    loaded, spec = onnx_file.load(tmp_path)
    assert spec == spec_of(model)
    assert loaded.graph == model.graph
    assert {p.key: p.value for p in loaded.metadata_props} == {VERSION_KEY: spec.version}


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_model()
    onnx_file.save(model, spec_of(model), tmp_path)
    first = (tmp_path / ONNX_FILE).read_bytes()
    stamped = onnx.load(str(tmp_path / ONNX_FILE))
    onnx_file.save(stamped, spec_of(stamped), tmp_path)
    assert (tmp_path / ONNX_FILE).read_bytes() == first


def test_the_hash_sees_constants_and_ignores_metadata() -> None:
    model = tiny_model()
    described = tiny_model()
    described.producer_name = "another"
    helper.set_model_props(described, {"note": "text"})
    assert onnx_file.graph_sha256(described) == onnx_file.graph_sha256(model)
    assert onnx_file.graph_sha256(tiny_model(scale=1.0000001)) != onnx_file.graph_sha256(model)


def test_other_weights_than_the_spec_describes_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    onnx_file.save(model, spec_of(model), tmp_path)
    (tmp_path / ONNX_FILE).write_bytes(tiny_model(scale=2).SerializeToString())
    with pytest.raises(SpecError, match=r"graph .* but its spec describes"):
        onnx_file.load(tmp_path)


def test_a_missing_stamp_and_another_stamp_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    spec = spec_of(model)
    spec.save(tmp_path)
    (tmp_path / ONNX_FILE).write_bytes(model.SerializeToString())
    with pytest.raises(SpecError, match="carries version None"):
        onnx_file.load(tmp_path)
    helper.set_model_props(model, {VERSION_KEY: "0" * 12})
    (tmp_path / ONNX_FILE).write_bytes(model.SerializeToString())
    with pytest.raises(SpecError, match=f"carries version 0+ but its spec.json has {spec.version}"):
        onnx_file.load(tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_model(input_name="images"), r"inputs \['images'\]"),
        (tiny_model(dtype=TensorProto.FLOAT), "is FLOAT"),
        (tiny_model(batch=1), "any batch"),
        (tiny_model(outputs=("embedding",)), r"outputs \['embedding'\]"),
        (tiny_model(outputs=("features", "embedding")), "outputs"),
    ],
)
def test_a_graph_that_is_no_embedder_is_refused(
    tmp_path: Path, model: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        onnx_file.save(model, spec_of(model), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"size": 8}, {"dim": 16}])
def test_shapes_must_be_those_of_the_spec(tmp_path: Path, change: dict[str, int]) -> None:
    model = tiny_model()
    with pytest.raises(SpecError, match="expected"):
        onnx_file.save(model, spec_of(model, **change), tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    model = tiny_model()
    onnx_file.save(model, spec_of(model), tmp_path)
    (tmp_path / ONNX_FILE).write_bytes(b"not a model")
    with pytest.raises(SpecError, match=f"{ONNX_FILE} is not a readable ONNX file"):
        onnx_file.load(tmp_path)
    (tmp_path / ONNX_FILE).unlink()
    with pytest.raises(SpecError, match=f"{ONNX_FILE} does not exist"):
        onnx_file.load(tmp_path)
    (tmp_path / SPEC_FILE).unlink()
    with pytest.raises(SpecError, match=f"{SPEC_FILE} does not exist"):
        onnx_file.load(tmp_path)


def test_a_spec_of_another_graph_is_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(SpecError, match="graph"):
        onnx_file.save(model, replace(spec_of(model), graph_sha256="0" * 64), tmp_path)


def test_reading_a_model_needs_no_torch() -> None:
    code = "import sys, unified_embedding.onnx_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
