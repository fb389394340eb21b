"""Export: one folder, whole or not at all, that computes what the torch model computes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

from unified_embedding import onnx_file
from unified_embedding.datasets import made_up
from unified_embedding.errors import SpecError
from unified_embedding.export import export
from unified_embedding.export.card import zero_shot_training
from unified_embedding.export.folder import whole_folder
from unified_embedding.export.graph import check_equal, largest_difference, to_onnx
from unified_embedding.image import Preprocessing
from unified_embedding.spec import EmbedderSpec
from unified_embedding.training.model import FixedMap, UnifiedEmbedder

TRUNK = "resnet10t"
SIZE = 64
RELEASED = Path(__file__).parents[2] / "models" / "unified-embedder-lite0"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return made_up.pixels(5, SIZE)


@pytest.fixture(scope="module")
def model() -> UnifiedEmbedder:
    exportable = export.zero_shot(TRUNK, "random", size=SIZE)
    export.calibrate_batch_norm(exportable.model, torch.from_numpy(made_up.pixels(16, SIZE)))
    return exportable.model


@pytest.fixture(scope="module")
def graph(model: UnifiedEmbedder) -> onnx.ModelProto:
    return to_onnx(model)


def run_cli(*arguments: str) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(export.main)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_the_graph_casts_first_and_holds_no_batch_norm(graph: onnx.ModelProto) -> None:
    operations = [node.op_type for node in graph.graph.node]
    assert operations[0] == "Cast"
    assert graph.graph.node[0].input == ["pixels"]
    assert "BatchNormalization" not in operations
    assert operations.count("LayerNormalization") == 1
    assert not {"Shape", "Gather", "Reshape"} & set(operations)


def test_both_outputs_equal_torch_for_any_batch(
    model: UnifiedEmbedder, graph: onnx.ModelProto, pixels: np.ndarray
) -> None:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for count in (1, 2, 5):
        with torch.no_grad():
            expected = model(torch.from_numpy(pixels[:count])).numpy()
        embedding, features = session.run(["embedding", "features"], {"pixels": pixels[:count]})
        np.testing.assert_allclose(embedding, expected, atol=1e-4)
        np.testing.assert_array_equal(embedding, features)


def test_equal_weights_give_equal_bytes_and_others_do_not(
    model: UnifiedEmbedder, graph: onnx.ModelProto
) -> None:
    again = to_onnx(model)
    assert again.SerializeToString(deterministic=True) == graph.SerializeToString(
        deterministic=True
    )
    other = to_onnx(export.zero_shot(TRUNK, "random", size=SIZE, seed=1).model)
    assert onnx_file.graph_sha256(other) != onnx_file.graph_sha256(graph)


def test_nothing_of_this_machine_is_in_the_file(graph: onnx.ModelProto) -> None:
    assert str(Path(export.__file__).parent).encode() not in graph.SerializeToString()
    assert not graph.graph.metadata_props


def test_the_fixed_map_is_part_of_graph_and_hash(pixels: np.ndarray) -> None:
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(0)
        model = UnifiedEmbedder(TRUNK, SIZE, fixed_map=True).eval()
        assert isinstance(model.fixed_map, FixedMap)
        model.fixed_map.set(np.linspace(0, 1, model.dim), seed)
        graph = to_onnx(model)
        check_equal(model, graph, pixels)
        hashes.add(onnx_file.graph_sha256(graph))
    assert len(hashes) == 2


def test_a_graph_that_differs_is_refused(
    model: UnifiedEmbedder, graph: onnx.ModelProto, pixels: np.ndarray
) -> None:
    assert largest_difference(model, graph, pixels) < 1e-4
    damaged = onnx.ModelProto()
    damaged.CopyFrom(graph)
    weight = max(damaged.graph.initializer, key=lambda t: len(t.raw_data))
    values = numpy_helper.to_array(weight) * np.float32(1.05)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(SpecError, match="differs from the model by"):
        check_equal(model, damaged, pixels)


def test_command_writes_a_folder_the_build_step_can_load(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for label in range(4):
        made_up.picture(label, 0, 90).save(pictures / f"{label}.png")
    out = tmp_path / "out" / "my-embedder"
    arguments = ["--trunk", TRUNK, "--out", str(out), "--size", str(SIZE)]
    notes = tmp_path / "notes.md"
    notes.write_text("## Data\nFour squares.\n")
    code, output = run_cli(*arguments, "--calibrate", str(pictures), "--notes", str(notes))
    assert code == 0, output
    assert "\n\n## Data\nFour squares.\n\n## Use\n" in (out / "README.md").read_text()
    assert "4 pictures of pictures/" in " ".join(output.split())
    _, spec = onnx_file.load(out)
    assert (spec.name, spec.trunk, spec.weights, spec.dim) == ("my-embedder", TRUNK, "random", 512)
    assert spec.preprocessing == Preprocessing(size=SIZE)
    assert sorted(p.name for p in out.iterdir()) == [
        "LICENSE",
        "README.md",
        "embedder.onnx",
        "spec.json",
    ]
    assert "Untrained" in (out / "README.md").read_text()
    first = (out / "embedder.onnx").read_bytes()
    assert run_cli(*arguments, "--calibrate", str(pictures))[0] == 0
    assert (out / "embedder.onnx").read_bytes() == first
    assert [p.name for p in out.parent.iterdir()] == ["my-embedder"]


def test_command_says_when_there_are_no_pictures(tmp_path: Path) -> None:
    code, output = run_cli(
        "--trunk", TRUNK, "--out", str(tmp_path / "e"), "--size", "32",
        "--calibrate", str(tmp_path / "none"),
    )  # fmt: skip
    assert code == 0
    assert "none/ held none" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trunk", "no_such_trunk"], "timm has no trunk"),
        (["--trunk", TRUNK, "--weights", "lite0"], "fit the trunk"),
        (["--trunk", TRUNK, "--license", "MIT"], "--license-file"),
        (["--trunk", TRUNK, "--notes", "nowhere.md"], "--notes nowhere.md cannot be read"),
        (["--trunk", TRUNK, "--weights", "nowhere.pth", "--license", "MIT"], "nor a file"),
    ],
)
def test_command_refuses_with_one_sentence_and_writes_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, output = run_cli(*arguments, "--out", str(tmp_path / "e"), "--size", "32")
    assert code == 1
    assert message in " ".join(output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SpecError, match="holds no embedder"), whole_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_failed_block_leaves_the_old_folder_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "e"
    with whole_folder(target) as folder:
        (folder / "spec.json").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_folder(target) as folder:
        (folder / "spec.json").write_text(str(1 // 0))
    assert (target / "spec.json").read_text() == "old"
    with whole_folder(target) as folder:
        (folder / "spec.json").write_text("new")
    assert (target / "spec.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_the_released_embedder_is_jointly_trained_and_says_so() -> None:
    _, spec = onnx_file.load(RELEASED)
    untrained = export.zero_shot(spec.trunk)
    assert spec.weights == f"trained on browse, camera, shop, from: {untrained.weights}"
    card = " ".join((RELEASED / "README.md").read_text().split())
    for stated in (
        spec.version,
        "Trained jointly",
        "4,300 steps of 48 pictures",
        "Scopia",
        "Noto",
    ):
        assert stated in card


def test_the_trunk_without_training_is_what_its_publishers_made() -> None:
    exportable = export.zero_shot("tf_efficientnet_lite0")
    graph = to_onnx(exportable.model)
    assert check_equal(exportable.model, graph, made_up.pixels(3)) < 1e-4
    spec = EmbedderSpec(
        name="zero-shot",
        trunk=exportable.trunk,
        dim=exportable.model.dim,
        weights=exportable.weights,
        graph_sha256=onnx_file.graph_sha256(graph),
        preprocessing=Preprocessing(),
        license=exportable.license,
    )
    assert "not trained jointly" in zero_shot_training(spec, "no pictures")
