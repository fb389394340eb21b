"""INT8 for CPUs: the released quantised graph, held against the gates, chosen by CPU features."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino", reason="the extra `build` is not installed")

import tiny_embedder as tiny

from unified_embedding import onnx_file
from unified_embedding.cli import engine, serve, tune
from unified_embedding.engine import building
from unified_embedding.engine.choice import Choice
from unified_embedding.engine.gates import gates, reference
from unified_embedding.engine.openvino.target import OpenVinoTarget, best, cpu_features
from unified_embedding.errors import BuildError, SetupError, SpecError
from unified_embedding.export.quantise import quantised
from unified_embedding.gallery import Gallery
from unified_embedding.image import load_pixels
from unified_embedding.onnx_runner import on_onnxruntime
from unified_embedding.serving.tritonserver import resolve
from unified_embedding.spec import INT8_FILE, EmbedderSpec

MODEL = "models/unified-embedder-lite0"


@pytest.fixture(scope="module")
def gallery(root: Path) -> Gallery:
    return Gallery.load(root / "demo")


@pytest.fixture(scope="module")
def repository(root: Path, gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "model_repository"
    folder.mkdir()
    building.build(root / MODEL, OpenVinoTarget("int8", root / MODEL), folder, gallery)
    return folder


@pytest.fixture
def tiny_int8(tmp_path: Path) -> Path:
    """A tiny embedder of random weights with its quantised graph."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    network = tiny.tiny_embedder()
    spec = tiny.spec_of(network)
    onnx_file.save(network, spec, folder)
    onnx_file.save_quantised(quantised(network, tiny.pixels(32)), spec, folder)
    return folder


@pytest.mark.parametrize(
    ("features", "quantised", "precision"),
    [
        ({"avx2"}, True, "int8"),
        ({"avx2"}, False, "fp32"),
        ({"avx2", "vnni"}, True, "int8"),
        ({"avx2", "vnni"}, False, "fp32"),
        ({"vnni"}, True, "fp32"),
        ({"avx2", "vnni", "bf16"}, True, "bf16"),
        ({"avx2", "vnni", "bf16"}, False, "bf16"),
        (set(), True, "fp32"),
    ],
)
def test_auto_follows_the_cpu(features: set[str], quantised: bool, precision: str) -> None:
    assert best(frozenset(features), quantised) == precision


def test_auto_on_this_machine(root: Path, tmp_path: Path) -> None:
    features = cpu_features()
    assert OpenVinoTarget("auto", root / MODEL).precision == best(features, True)
    assert OpenVinoTarget("auto", tmp_path).precision == best(features, False)


def test_the_released_embedder_passes_the_int8_gates(root: Path, repository: Path) -> None:
    """On any CPU: with weights of 7 bits, no 16-bit sum can overflow."""
    record = json.loads((repository / "embedder/1/engine.json").read_text())
    assert record["engine"].startswith("openvino-int8-")
    assert "quantised" in record["environment"]
    assert "nncf" not in record["environment"]
    figures = record["gates"]["figures"]
    # Not fp32 under another name.
    assert 0.01 < figures["flips_mean"] <= 0.025
    network = (repository / "embedder/1/model.xml").read_text()
    assert network.count('type="FakeQuantize"') > 40
    assert 'element_type="i8"' in network


def test_this_cpu_flips_no_more_bits_than_exact_sums(
    root: Path, gallery: Gallery, repository: Path
) -> None:
    spec = EmbedderSpec.load(root / MODEL)
    some = Gallery(gallery.folder, gallery.role("catalogue")[::3])
    pixels = reference.load_gallery(some, spec.preprocessing)
    truth = reference.embed(reference.reference_runner(root / MODEL), pixels, "fp32")
    exact = on_onnxruntime(root / MODEL / INT8_FILE, optimised=False)
    compiled = OpenVinoTarget("int8", root / MODEL).runner(repository / "embedder/1")
    by_file, here = (
        gates.measure(truth, reference.embed(run, pixels, "int8"), some, True).flips_mean
        for run in (exact, compiled)
    )
    assert by_file <= gates.TOLERANCES["int8"].flips_mean
    assert here <= by_file + 0.003


def test_the_weights_have_seven_bits(root: Path) -> None:
    spec = EmbedderSpec.load(root / MODEL)
    graph = onnx_file.load_quantised(root / MODEL, spec).graph
    held = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    weights = [
        held[n.input[0]] for n in graph.node if n.input[0] in held and n.input[0][-2:] == "/q"
    ]
    assert len(weights) == sum(node.op_type == "Conv" for node in graph.node)
    assert {array.dtype for array in weights} == {np.dtype(np.int8)}
    assert max(int(np.abs(array.astype(int)).max()) for array in weights) == 63


def test_the_quantised_graph_of_another_embedder_is_refused(root: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(root / MODEL, model)
    graph = onnx.load(str(model / INT8_FILE))
    onnx.helper.set_model_props(graph, {"unified_embedding.version": "0123456789ab"})
    onnx.save(graph, str(model / INT8_FILE))
    target = OpenVinoTarget("int8", model)
    told = r"made of version '0123456789ab'.*make quantise.*or remove it"
    with pytest.raises(SpecError, match=told):
        target.compile(model, tmp_path, np.zeros((1, 224, 224, 3), np.uint8))


def test_auto_builds_fp32_where_int8_fails_its_gates(
    root: Path, few_products: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if best(cpu_features(), True) != "int8":
        pytest.skip("int8 is not this CPU's: it has native bf16, which comes first, or no AVX2")
    model, into = tmp_path / "model", tmp_path / "model_repository"
    shutil.copytree(root / MODEL, model)
    into.mkdir()
    graph = onnx.load(str(model / INT8_FILE))
    scale = next(t for t in graph.graph.initializer if t.name.endswith("/scale") and not t.dims)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.array(0.005, np.float32), scale.name))
    onnx.save(graph, str(model / INT8_FILE))
    with pytest.raises(SystemExit):
        engine.main(model=model, gallery=few_products, precision="int8", repository=into)
    assert not (into / "embedder").exists()
    engine.main(model=model, gallery=few_products, precision="auto", repository=into)
    record = json.loads((into / "embedder/1/engine.json").read_text())
    assert record["precision"] == "fp32"
    assert record["choice"]["precision"] == "auto"

    # It is not tried again, neither by `make engine` nor by `make tune`.
    capsys.readouterr()
    engine.main(repository=into)
    said = " ".join(capsys.readouterr().out.split())
    assert "is up to date" in said
    assert "compiling" not in said
    assert "openvino fp32" in tune.what_is_installed(into, tmp_path / "tuning.json")[0]
    # A mere "auto" comes to it: asked for by name, int8 meets its gates again.
    choice = Choice.installed(into / "embedder")
    assert choice is not None
    pictures, tuned = Gallery.load(few_products), tmp_path / "tuning.json"

    def precision(asked: str) -> str:
        named = choice.with_(precision=asked)
        return building.chosen(named, into / "embedder", pictures, tuned).precision

    assert (precision("auto"), precision("int8")) == ("fp32", "int8")
    # And so does another quantised graph.
    shutil.copyfile(root / MODEL / INT8_FILE, model / INT8_FILE)
    assert precision("auto") == "int8"


def test_auto_passes_over_a_stale_quantised_graph(
    tiny_int8: Path, few_products: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if best(cpu_features(), True) != "int8":
        pytest.skip("int8 is not this CPU's: it has native bf16, which comes first, or no AVX2")
    graph = onnx.load(str(tiny_int8 / INT8_FILE))
    onnx.helper.set_model_props(graph, {"unified_embedding.version": "0123456789ab"})
    onnx.save(graph, str(tiny_int8 / INT8_FILE))
    into = tmp_path / "model_repository"
    into.mkdir()
    engine.main(model=tiny_int8, gallery=few_products, precision="auto", repository=into)
    assert json.loads((into / "embedder/1/engine.json").read_text())["precision"] == "fp32"
    (said,) = caplog.messages
    assert "passes over int8" in said
    assert "made of version '0123456789ab'" in said


def test_serve_builds_what_make_engine_builds(
    tiny_int8: Path, few_products: Path, tmp_path: Path
) -> None:
    served, into = tmp_path / "served", tmp_path / "model_repository"
    into.mkdir()
    serve._with_model(tiny_int8, few_products, served)
    engine.main(model=tiny_int8, gallery=few_products, precision="auto", repository=into)
    by_serve, by_make = (
        json.loads((folder / "embedder/1/engine.json").read_text()) for folder in (served, into)
    )
    assert by_serve["precision"] == best(cpu_features(), True)
    assert by_serve["engine"] == by_make["engine"]
    assert by_serve["choice"] is None


@pytest.mark.e2e
def test_the_server_gives_the_bits_that_passed_the_gates(
    root: Path, gallery: Gallery, repository: Path
) -> None:
    grpcclient = pytest.importorskip("tritonclient.grpc", reason="the extra `client` is missing")
    try:
        resolve([], os.environ)
    except SetupError as error:
        pytest.skip(str(error))
    from unified_embedding.engine.gates import server_checks, server_gate

    preprocessing = EmbedderSpec.load(root / MODEL).preprocessing
    pictures = [picture.path.read_bytes() for picture in gallery.pictures[:16]]
    pixels = np.stack([load_pixels(picture, preprocessing) for picture in pictures])
    gated = OpenVinoTarget("int8").runner(repository / "embedder/1")(pixels)
    alone = repository.parent / "served"
    shutil.copytree(repository / "embedder", alone / "embedder")
    with (
        server_gate.serving(alone) as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
    ):
        served = server_checks.embedder_runner(client)(pixels)
    assert np.array_equal(served, gated)


def test_without_nncf_the_error_names_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    told = r"make quantise MODEL=.*make engine MODEL=... PRECISION=int8 installs it.*pip install"
    with pytest.raises(BuildError, match=told):
        OpenVinoTarget("int8").inputs()


def test_without_a_quantised_graph_the_pictures_make_the_engine(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="the extra `int8` is not installed")
    spec = onnx_file.load(root / MODEL)[1]
    (tmp_path / "a.png").write_bytes((root / "demo" / "gallery.csv").read_bytes())
    (tmp_path / "gallery.csv").write_text("image,product,role\na.png,p,shot\n")
    galleries = [Gallery.load(folder) for folder in (root / "demo", tmp_path)]
    for target, distinct in (
        (OpenVinoTarget("int8"), 2),
        (OpenVinoTarget("int8", root / MODEL), 1),
        (OpenVinoTarget("fp32", root / MODEL), 1),
    ):
        ids = {building.engine_id(spec, target, gallery) for gallery in galleries}
        assert len(ids) == distinct


def test_an_engine_calibrated_on_the_wrong_pictures_is_not_installed(
    root: Path, gallery: Gallery, repository: Path
) -> None:
    pytest.importorskip("nncf", reason="the extra `int8` is not installed")

    class Blind(OpenVinoTarget):
        """Calibrated on black pictures: the ranges of real ones are cut off."""

        def compile(self, model: Path, folder: Path, pixels: np.ndarray):
            return super().compile(model, folder, np.zeros_like(pixels[:8]))

        def inputs(self) -> dict[str, str]:
            return {**super().inputs(), "calibration": "black"}

    before = (repository / "embedder/1/engine.json").read_text()
    with pytest.raises(BuildError, match="a gate failed"):
        building.build(root / MODEL, Blind("int8"), repository, gallery)
    assert (repository / "embedder/1/engine.json").read_text() == before
