"""The three model.py files, called as Triton calls them."""

import importlib.util
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from triton_python_backend_utils import MetricFamily, Request, TritonError

from unified_embedding import load_pixels
from unified_embedding.gallery import Gallery
from unified_embedding.serving.backlog import Backlog
from unified_embedding.spec import EmbedderSpec

MODEL = "models/unified-embedder-lite0"


def model_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"model_{path.parent.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TritonPythonModel()


@pytest.fixture
def images(root: Path) -> list[bytes]:
    return [picture.path.read_bytes() for picture in Gallery.load(root / "demo").pictures[:3]]


def rows(*images: bytes) -> np.ndarray:
    return np.array([[image] for image in images], dtype=np.object_).reshape(-1, 1)


@pytest.fixture
def preprocess(root: Path, tmp_path: Path) -> Iterator[Any]:
    engine = tmp_path / "embedder" / "1"
    engine.mkdir(parents=True)
    shutil.copy(root / MODEL / "spec.json", engine)
    (engine / "engine.json").write_text(json.dumps({"version": "v", "engine": "e"}))
    model = model_of(root / "model_repository/preprocess/1/model.py")
    config = {
        "parameters": {"max_request_pixels": {"string_value": "2_000_000"}},
    }
    model.initialize(
        {
            "model_repository": str(tmp_path / "preprocess"),
            "model_name": "preprocess",
            "model_config": json.dumps(config),
        }
    )
    yield model
    model.finalize()
    model.engine_pace.remove()
    model.backlog.remove()


def test_preprocess(root: Path, preprocess: Any, images: list[bytes]) -> None:
    model = preprocess
    preprocessing = EmbedderSpec.load(root / MODEL).preprocessing
    good, bad, cropped, no_box = model.execute(
        [
            Request("image", rows(*images)),
            Request("image", rows(images[0], b"text")),
            Request("image", rows(*images), json.dumps({"crop": "0,0,0.5,0.5"})),
            Request("image", rows(images[0]), json.dumps({"crop": "1,2"})),
        ]
    )
    expected = np.stack([load_pixels(image, preprocessing) for image in images])
    assert np.array_equal(good.outputs["pixels"], expected)
    assert good.outputs["version"].tolist() == [[b"v e"]] * 3
    assert bad.error.message.startswith("image 1: not an image")
    assert not np.array_equal(cropped.outputs["pixels"], expected)
    assert "not four numbers" in no_box.error.message
    model.finalize()
    metrics = model.metrics
    assert counted(metrics, "embedder_refused_total")["preprocess", "bad_input"] == 2
    # Each picture by itself; the request with a bad one had a good one before it.
    took = counted(metrics, "embedder_decode_duration_seconds")["preprocess",]
    assert len(took) == 3 + 3
    assert counted(metrics, "embedder_info") == {("embedder", "v", "e"): 1}
    (size,) = counted(metrics, "embedder_shm_size_bytes").values()
    (used,) = counted(metrics, "embedder_shm_used_bytes").values()
    assert 0 <= used <= size


def by(seconds: float) -> str:
    """The parameters of a request that must be answered within `seconds` from now."""
    return json.dumps({"deadline": str(time.time() + seconds)})


def test_preprocess_refuses_what_is_late(preprocess: Any, images: list[bytes]) -> None:
    in_time, late, no_moment = preprocess.execute(
        [
            Request("image", rows(*images), by(60)),
            Request("image", rows(*images), by(-1)),
            Request("image", rows(images[0]), json.dumps({"deadline": "soon"})),
        ]
    )
    assert in_time.error is None
    assert late.error.code == TritonError.CANCELLED
    assert no_moment.error.code == TritonError.INVALID_ARG
    # The engine's batches take longer than what is left.
    preprocess.engine_pace.write(50.0)
    refused, probed = preprocess.execute(
        [Request("image", rows(images[0]), by(60)), Request("image", rows(images[0]))]
    )
    assert refused.error.code == TritonError.CANCELLED
    assert "an answer takes" in refused.error.message
    assert probed.error is None


def test_preprocess_decodes_no_more_than_the_engine_takes(
    preprocess: Any, images: list[bytes]
) -> None:
    """Whoever waits for the engine too long is refused then, and nothing was done for him."""
    preprocess.backlog.begin(limit=3)
    requests = [Request("image", rows(images[0])) for _ in range(3)]
    assert [answer.error for answer in preprocess.execute(requests)] == [None] * 3
    with preprocess.backlog.taken(0, most=0, pace=0.0):
        (late,) = preprocess.execute([Request("image", rows(images[0]), by(0.2))])
    assert late.error.code == TritonError.CANCELLED
    # An idle engine that takes nothing has lost what it was handed, and the others go on.
    (others,) = preprocess.execute([Request("image", rows(images[0]))])
    assert others.error is None
    preprocess.finalize()
    took = counted(preprocess.metrics, "embedder_decode_duration_seconds")["preprocess",]
    assert len(took) == 3 + 1


def square(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_large_request_is_answered_by_another_thread(preprocess: Any) -> None:
    """The others do not wait for it, and it is checked again when its turn comes."""
    requests = [
        Request("image", rows(square(1000)), by(60)),
        Request("image", rows(square(1000)[:-40])),
        Request("image", rows(square(100))),
    ]
    large, damaged, small = preprocess.execute(requests)
    assert large is None
    assert damaged is None
    assert small.outputs["pixels"].shape == (1, 224, 224, 3)
    answer = requests[0].sender.answers.get(timeout=60)
    assert np.array_equal(answer.outputs["pixels"], small.outputs["pixels"])
    refused = requests[1].sender.answers.get(timeout=60)
    assert refused.error.code == TritonError.INVALID_ARG
    assert refused.error.message.startswith("image 0: ")
    (late,) = preprocess.execute([Request("image", rows(square(1000)), by(-1))])
    assert late.error.code == TritonError.CANCELLED


def test_preprocess_refuses_more_pixels_than_a_request_may_cost(preprocess: Any) -> None:
    def answer(side: int, count: int) -> Any:
        return preprocess.execute([Request("image", rows(*[square(side)] * count))])[0]

    assert answer(100, 16).error is None
    refused = answer(1400, 2).error
    assert refused.code == TritonError.INVALID_ARG
    # No row is named, so a client sends the pictures singly.
    assert "MAX_REQUEST_PIXELS" in refused.message
    assert "image 0" not in refused.message
    none, many = answer(10, 0).error, answer(10, 17).error
    assert none.code == many.code == TritonError.INVALID_ARG
    assert "has 17 images; send 1 to 16" in many.message


def test_preprocess_does_not_read_parameters_that_are_no_text(
    preprocess: Any, images: list[bytes]
) -> None:
    class Broken(Request):
        def parameters(self) -> str:
            return b"{\xff}".decode()

    bad, good = preprocess.execute(
        [Broken("image", rows(images[0])), Request("image", rows(images[0]))]
    )
    assert bad.error.code == TritonError.INVALID_ARG
    assert "UTF-8" in bad.error.message
    assert good.error is None


def test_a_huge_parameter_is_not_echoed(preprocess: Any, images: list[bytes]) -> None:
    for name in ("crop", "deadline"):
        (bad,) = preprocess.execute(
            [Request("image", rows(images[0]), json.dumps({name: "7x" * 10_000}))]
        )
        assert bad.error.code == TritonError.INVALID_ARG
        assert len(bad.error.message) < 300


def test_binarizer(root: Path) -> None:
    model = model_of(root / "model_repository/binarizer/1/model.py")
    model.initialize({"model_name": "v2-binarizer"})
    features = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    broken = features.copy()
    broken[2, 1] = np.nan
    good, bad = model.execute([Request("features", features), Request("features", broken)])
    assert np.array_equal(good.outputs["code"], np.packbits(features > 0, axis=1))
    assert "row 2 holds NaN" in bad.error.message
    assert bad.outputs == {}
    model.finalize()
    assert counted(model.metrics, "embedder_refused_total") == {
        ("v2-binarizer", "bad_input"): 1, ("v2-binarizer", "late"): 0,
        ("v2-binarizer", "busy"): 0, ("v2-binarizer", "internal"): 0,
    }  # fmt: skip


def counted(metrics: Any, name: str) -> dict[tuple[str, ...], Any]:
    """The values of one of a model's metrics, by its labels' values; of a histogram all of them."""
    family: MetricFamily = metrics._families[name]
    found = {}
    for metric in family.metrics:
        value = metric.observed if family.kind == MetricFamily.HISTOGRAM else metric.value
        found[tuple(metric.labels.values())] = value
    return found


def test_embedder(root: Path, tmp_path: Path, images: list[bytes]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from unified_embedding.engine.openvino.target import OpenVinoTarget

    folder = tmp_path / "embedder" / "1"
    folder.mkdir(parents=True)
    preprocessing = EmbedderSpec.load(root / MODEL).preprocessing
    pixels = np.stack([load_pixels(image, preprocessing) for image in images])
    OpenVinoTarget("fp32").compile(root / MODEL, folder, pixels)
    model = model_of(folder / "model.py")
    config = {
        "max_batch_size": 16,
        "instance_group": [{"count": 1}],
        "input": [{"dims": ["224", "224", "3"]}],
        "parameters": {
            "inference_precision": {"string_value": "f32"},
            "threads": {"string_value": "2"},
            "streams": {"string_value": "2"},
            "slice": {"string_value": "4"},
        },
    }
    arguments = {
        "model_config": json.dumps(config),
        "model_version": "1",
        "model_name": "embedder",
    }
    model.initialize({**arguments, "model_repository": str(folder.parent)})
    one, two = model.execute([Request("pixels", pixels[:1]), Request("pixels", pixels[1:])])
    first, second = one.outputs["embedding"].copy(), two.outputs["embedding"].copy()
    assert first.shape == (1, 1280)
    assert second.shape == (2, 1280)
    assert np.array_equal(second, two.outputs["features"])
    # LayerNorm without affine: every row has mean 0 and variance 1.
    assert np.abs(second.mean(axis=1)).max() < 1e-5
    assert np.abs(second.var(axis=1) - 1).max() < 1e-3
    (alone,) = model.execute([Request("pixels", pixels[2:])])
    assert np.array_equal(alone.outputs["embedding"][0], second[1])
    # Whatever it takes makes room for as many.
    backlog = Backlog("embedder", sleep=lambda _: pytest.fail("there is no room"))
    for _ in range(3):
        with backlog.place(16):
            pass
        model.execute([Request("pixels", pixels[np.arange(16) % len(pixels)])])
    # However a batch is split between the streams, every row is its picture's.
    for count in (2, 5, 9, 16):
        order = np.arange(count) % len(pixels)
        (batch,) = model.execute([Request("pixels", pixels[order])])
        expected = np.concatenate([first, second])[order]
        assert np.array_equal(batch.outputs["embedding"], expected)
    # What is too late is dropped; what waits beside it gets its own rows.
    late = json.dumps({"deadline": str(time.time() - 1)})
    answers = model.execute(
        [
            Request("pixels", pixels[:1], late),
            Request("pixels", pixels[1:]),
            Request("pixels", pixels[:1], late),
        ]
    )
    assert [answer.error and answer.error.code for answer in answers] == [
        TritonError.CANCELLED,
        None,
        TritonError.CANCELLED,
    ]
    assert np.array_equal(answers[1].outputs["embedding"], second)
    (no_moment,) = model.execute([Request("pixels", pixels[:1], json.dumps({"deadline": "soon"}))])
    assert no_moment.error.code == TritonError.INVALID_ARG
    assert model.shared_pace.read() > 0
    model.finalize()
    assert model.shared_pace.read() == 0
    took = counted(model.metrics, "embedder_engine_duration_seconds")["embedder",]
    assert len(took) == 10
    assert min(took) > 0
    refused = counted(model.metrics, "embedder_refused_total")
    assert refused["embedder", "late"] == 2
    assert refused["embedder", "bad_input"] == 1
