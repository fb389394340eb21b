"""INT8 for CPUs: quantised on pictures, held against the same gates, installed or not."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", reason="the extra `build` is not installed")
pytest.importorskip("nncf", reason="the extra `int8` is not installed")


from unified_embedding import onnx_file
from unified_embedding.engine import building
from unified_embedding.engine.openvino.target import OpenVinoTarget
from unified_embedding.errors import BuildError, SetupError
from unified_embedding.gallery import Gallery
from unified_embedding.image import load_pixels
from unified_embedding.serving.tritonserver import resolve
from unified_embedding.spec import EmbedderSpec

MODEL = "models/unified-embedder-lite0"


@pytest.fixture(scope="module")
def gallery(root: Path) -> Gallery:
    return Gallery.load(root / "demo")


@pytest.fixture(scope="module")
def repository(root: Path, gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "vnni" not in Path("/proc/cpuinfo").read_text():
        # Sums of products saturate there, and the gates rightly refuse the engine (6.3 % of the
        # bits flipped, limit 6.0).
        pytest.skip("this CPU has no VNNI, which int8 needs")
    folder = tmp_path_factory.mktemp("int8") / "model_repository"
    folder.mkdir()
    building.build(root / MODEL, OpenVinoTarget("int8"), folder, gallery)
    return folder


def test_the_released_embedder_passes_the_int8_gates(root: Path, repository: Path) -> None:
    record = json.loads((repository / "embedder/1/engine.json").read_text())
    assert record["engine"].startswith("openvino-int8-")
    assert set(record["environment"]) >= {"openvino", "nncf"}
    figures = record["gates"]["figures"]
    # Not fp32 under another name: int8 flips more bits than bf16 may.
    assert 0.02 < figures["flips_mean"] <= 0.06
    network = (repository / "embedder/1/model.xml").read_text()
    assert network.count('type="FakeQuantize"') > 50
    assert 'element_type="i8"' in network
    whole = (root / MODEL / "embedder.onnx").stat().st_size
    assert (repository / "embedder/1/model.bin").stat().st_size < 0.3 * whole


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


def test_other_calibration_pictures_make_another_engine(root: Path, tmp_path: Path) -> None:
    target = OpenVinoTarget("int8")
    spec = onnx_file.load(root / MODEL)[1]
    (tmp_path / "a.png").write_bytes((root / "demo" / "gallery.csv").read_bytes())
    (tmp_path / "gallery.csv").write_text("image,product,role\na.png,p,shot\n")
    ids = {
        building.engine_id(spec, target, Gallery.load(folder))
        for folder in (root / "demo", tmp_path)
    }
    assert len(ids) == 2
    fp32 = OpenVinoTarget("fp32")
    ids = {building.engine_id(spec, fp32, Gallery.load(f)) for f in (root / "demo", tmp_path)}
    assert len(ids) == 1


def test_an_engine_calibrated_on_the_wrong_pictures_is_not_installed(
    root: Path, gallery: Gallery, repository: Path
) -> None:
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
