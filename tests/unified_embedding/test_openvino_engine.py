"""The CPU engine, however it splits a batch, against onnxruntime."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

import onnxruntime
import openvino as ov

from unified_embedding.openvino_engine import OpenVinoEngine
from unified_embedding.spec import INPUT, ONNX_FILE, OUTPUT

MODEL = "models/unified-embedder-lite0"


@pytest.fixture(scope="module")
def network(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "model.xml"
    ov.save_model(ov.convert_model(root / MODEL / ONNX_FILE), path, compress_to_fp16=False)
    return path


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Nineteen different pictures, smooth as photographs are."""
    coarse = np.random.default_rng(0).integers(0, 256, (19, 7, 7, 3), dtype=np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


@pytest.fixture(scope="module")
def truth(root: Path, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        root / MODEL / ONNX_FILE, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run([OUTPUT], {INPUT: pixels})[0])


@pytest.mark.parametrize(
    ("threads", "streams", "slice_size", "largest"),
    [(2, 2, 4, 16), (2, 2, 1, 16), (1, 1, 3, 7), (2, 1, 16, 16), (3, 3, 2, 5), (4, 4, 8, 16)],
)
def test_every_split_gives_each_picture_its_own_embedding(
    network: Path,
    pixels: np.ndarray,
    truth: np.ndarray,
    threads: int,
    streams: int,
    slice_size: int,
    largest: int,
) -> None:
    engine = OpenVinoEngine(
        network,
        precision="f32",
        threads=threads,
        streams=streams,
        max_batch_size=largest,
        slice_size=slice_size,
    )
    alone = engine.embed([pixels[0]])
    assert np.abs(alone[0] - truth[0]).max() < 1e-3
    for count in range(1, largest + 1):
        # From the end: what stood in a request's memory before would show.
        rows = engine.embed(list(pixels[-count:]))
        assert rows.dtype == np.float32
        assert np.abs(rows - truth[-count:]).max() < 1e-3
    for wrong in ([], list(pixels[:1]) * (largest + 1)):
        with pytest.raises(ValueError, match=f"{len(wrong)} pictures: give 1 to {largest}"):
            engine.embed(wrong)
    whole = engine.embed_all(pixels)
    assert np.abs(whole - truth).max() < 1e-3
    # Bit for bit the same, whatever else was in the batch.
    assert np.array_equal(whole[0], alone[0])
    assert np.array_equal(engine.embed_all(pixels[1:]), whole[1:])
