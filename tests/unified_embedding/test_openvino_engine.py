"""The CPU engine, however it splits a batch, against onnxruntime."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

import onnxruntime
import openvino as ov

from unified_embedding.serving.openvino_engine import OpenVinoEngine
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
    # Bit for bit the same, whatever else was in the batch, where a stream has one thread. Two
    # threads share the work of a batch and of a single picture differently: on a CPU with AVX2
    # only, the last bits then differ.
    same = partial(np.allclose, atol=1e-5) if threads > streams else np.array_equal
    assert same(whole[0], alone[0])
    assert same(engine.embed_all(pixels[1:]), whole[1:])


# In a process of its own, which the fault would end.
SIGNALLED = """
import signal, sys
import subprocess
import sys
from pathlib import Path
from unified_embedding.serving.openvino_engine import OpenVinoEngine

signal.signal(signal.SIGUSR1, lambda *_: print("caught"))
for _ in range(2):
    engine = OpenVinoEngine(
        Path(sys.argv[1]), precision="f32", threads=2, streams=2, max_batch_size=8
    )
    signal.raise_signal(signal.SIGUSR1)
    del engine
    signal.raise_signal(signal.SIGUSR1)
"""


def test_a_signal_finds_its_stack_after_engines_were_released(network: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SIGNALLED, network], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "caught\n" * 4), run.stderr
