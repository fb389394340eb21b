"""The wire contract on the real tritonserver."""

import io
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified_embedding import Box, load_pixels
from unified_embedding.gallery import Gallery

grpcclient = pytest.importorskip("tritonclient.grpc", reason="the extra `client` is missing")
triton = pytest.importorskip("triton_calls")

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def images(gallery: Gallery) -> list[bytes]:
    """Sixteen pictures of several formats and sizes."""
    shots, catalogue = gallery.role("shot"), gallery.role("catalogue")
    chosen = [*shots[:: len(shots) // 8][:8], *catalogue[:: len(catalogue) // 6][:6]]
    pictures = [picture.path.read_bytes() for picture in chosen]
    large = Image.open(io.BytesIO(pictures[0])).resize((1600, 1200))
    return [*pictures, encode(large, "JPEG"), encode(large.convert("L"), "WEBP")]


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def agree(server, left: np.ndarray, right: np.ndarray) -> bool:
    """The same bits. A GPU may run another kernel for another batch size: nearly the same there."""
    if not server.engine.startswith("tensorrt-") or left.dtype == object:
        return np.array_equal(left, right)
    if left.dtype == np.uint8:
        return bool((np.unpackbits(left) != np.unpackbits(right)).mean() <= 0.01)
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return bool(((left * right).sum(axis=-1) >= 0.9999 * lengths).all())


def statistics(url: str, model: str) -> tuple[int, int]:
    """(images, executions) that Triton counted for a model."""

    def read() -> tuple[int, int]:
        stats = client.get_inference_statistics(model).model_stats[0]
        return int(stats.inference_count), int(stats.execution_count)

    with grpcclient.InferenceServerClient(url) as client:
        return triton.settled(read)


def test_preprocess_returns_the_bytes_of_the_library(server, images) -> None:
    rows = np.array([[image] for image in images], dtype=object)
    answer = triton.infer(server.grpc_url, "preprocess", "image", rows, ["pixels", "version"])
    expected = np.stack([load_pixels(image, server.spec.preprocessing) for image in images])
    assert np.array_equal(answer["pixels"], expected)
    assert set(answer["version"][:, 0]) == {f"{server.spec.version} {server.engine}".encode()}


def test_embedder_lies_within_its_gates_of_the_reference(server, images, root: Path) -> None:
    from unified_embedding.engine.gates import gates, reference

    pixels = np.stack([load_pixels(image, server.spec.preprocessing) for image in images])
    outputs = ("embedding", "features")
    answer = triton.infer(server.grpc_url, "embedder", "pixels", pixels, outputs)
    assert np.array_equal(answer["embedding"], answer["features"])
    truth = reference.reference_runner(root / "models" / server.spec.name)(pixels)
    engine = json.loads((server.repository / "embedder/1/engine.json").read_text())
    limits = gates.TOLERANCES[engine["precision"]]
    cosine = (truth * answer["embedding"]).sum(axis=1) / (
        np.linalg.norm(truth, axis=1) * np.linalg.norm(answer["embedding"], axis=1)
    )
    flipped = ((truth > 0) != (answer["embedding"] > 0)).mean(axis=1)
    assert cosine.min() >= (limits.cosine_worst or 0)
    assert flipped.max() <= limits.flips_worst


def test_binarizer_is_numpy_packbits(server) -> None:
    features = np.random.default_rng(0).normal(size=(7, server.spec.dim)).astype(np.float32)
    features[0, :5] = [0.0, -0.0, 1e-45, -1e-45, 1.0]
    answer = triton.infer(server.grpc_url, "binarizer", "features", features, ["code"])
    assert np.array_equal(answer["code"], np.packbits(features > 0, axis=1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_never_leave_as_a_code(server, bad: float) -> None:
    features = np.zeros((2, server.spec.dim), dtype=np.float32)
    features[1, 3] = bad
    with pytest.raises(grpcclient.InferenceServerException, match="row 1 holds NaN or infinity"):
        triton.infer(server.grpc_url, "binarizer", "features", features, ["code"])


def test_the_ensemble_answers_what_its_steps_answer(server, images) -> None:
    answer = triton.embed(server.grpc_url, images)
    pixels = np.stack([load_pixels(image, server.spec.preprocessing) for image in images])
    step = triton.infer(server.grpc_url, "embedder", "pixels", pixels, ["embedding"])
    assert agree(server, answer["embedding"], step["embedding"])
    assert np.array_equal(answer["code"], np.packbits(answer["embedding"] > 0, axis=1))
    assert answer["embedding"].shape == (16, server.spec.dim)
    assert answer["code"].shape == (16, server.spec.dim // 8)


@pytest.mark.parametrize(
    "outputs", [("embedding",), ("code",), ("embedding", "code"), ("version",), triton.ALL]
)
def test_any_choice_of_outputs(server, images, outputs: tuple[str, ...]) -> None:
    whole = triton.embed(server.grpc_url, images[:3])
    answer = triton.embed(server.grpc_url, images[:3], outputs)
    assert set(answer) == set(outputs)
    for name in outputs:
        assert agree(server, answer[name], whole[name])


def test_the_embedding_alone_skips_the_binarizer(server, images) -> None:
    before = statistics(server.grpc_url, "binarizer")
    triton.embed(server.grpc_url, images[:2], ("embedding",))
    assert statistics(server.grpc_url, "binarizer") == before


def test_an_image_gets_the_same_bits_alone_in_any_batch_and_at_any_position(server, images) -> None:
    probe = images[0]
    alone = triton.embed(server.grpc_url, [probe])["embedding"][0]
    for size in (2, 3, 5, 8, 13, 16):
        for position in {0, size // 2, size - 1}:
            batch = [images[(index + size) % 16] for index in range(size)]
            batch[position] = probe
            answer = triton.embed(server.grpc_url, batch)["embedding"][position]
            assert agree(server, answer, alone), (size, position)


def test_concurrent_single_images_share_batches(server, images) -> None:
    alone = [triton.embed(server.grpc_url, [image])["code"][0] for image in images]
    before = statistics(server.grpc_url, "embedder")

    def work(index: int) -> list[np.ndarray]:
        return [triton.embed(server.grpc_url, [images[index]])["code"][0] for _ in range(8)]

    answers = triton.at_once(16, work)
    after = statistics(server.grpc_url, "embedder")
    for expected, codes in zip(alone, answers, strict=True):
        assert all(agree(server, code, expected) for code in codes)
    assert (after[0] - before[0]) / (after[1] - before[1]) > 1.5


def test_a_corrupt_image_fails_alone_among_good_ones_in_flight(server, images) -> None:
    def work(index: int) -> list[str]:
        seen = []
        for _ in range(6):
            if index == 5:
                with pytest.raises(grpcclient.InferenceServerException) as caught:
                    triton.embed(server.grpc_url, [images[0], b"this is a text file"])
                seen.append(str(caught.value))
            else:
                triton.embed(server.grpc_url, [images[index]])
        return seen

    answers = triton.at_once(9, work)
    assert [a for a in answers if isinstance(a, BaseException)] == []
    assert len(answers[5]) == 6
    for message in answers[5]:
        assert "INVALID_ARGUMENT" in message
        assert "image 1: not an image this server reads" in message


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("empty", "the image is empty"),
        ("text", "not an image"),
        ("truncated", "truncated or corrupt"),
        ("bytes", r"64,\d+,\d+ bytes; the limit is 64,000,000"),
        ("pixels", "the limit is 50,000,000"),
    ],
)
def test_bad_images_are_refused_with_a_reason(server, images, case: str, reason: str) -> None:
    data = {
        "empty": lambda: b"",
        "text": lambda: b"GIF89 but not really",
        "truncated": lambda: images[0][: len(images[0]) // 2],
        "bytes": lambda: images[0] + b"\0" * 64_000_000,
        "pixels": lambda: encode(Image.new("1", (10_000, 5_001)), "PNG"),
    }[case]()
    with pytest.raises(grpcclient.InferenceServerException, match=reason) as caught:
        triton.embed(server.grpc_url, [data])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_largest_allowed_picture_is_served(server) -> None:
    data = encode(Image.new("1", (10_000, 5_000)), "PNG")
    assert triton.embed(server.grpc_url, [data])["code"].shape == (1, server.spec.dim // 8)


def test_crop_equals_the_cropped_pixels(server, images) -> None:
    box = Box(0.2, 0.1, 0.7, 0.9)
    image = Image.open(io.BytesIO(images[0])).convert("RGB")
    cropped = encode(image.crop(box.pixels(*image.size)), "PNG")
    whole = encode(image, "PNG")
    by_parameter = triton.embed(server.grpc_url, [whole], crop=str(box))
    by_pixels = triton.embed(server.grpc_url, [cropped])
    assert agree(server, by_parameter["embedding"], by_pixels["embedding"])
    assert not np.array_equal(by_parameter["code"], triton.embed(server.grpc_url, [whole])["code"])


def test_sixteen_boxes_in_flight_are_each_answered_with_their_own(server, images) -> None:
    boxes = [Box(i / 40, i / 50, 0.5 + i / 40, 0.6 + i / 50) for i in range(16)]
    expected = [triton.embed(server.grpc_url, [images[0]], crop=str(box)) for box in boxes]
    answers = triton.at_once(
        16, lambda index: triton.embed(server.grpc_url, [images[0]], crop=str(boxes[index]))
    )
    for answer, alone in zip(answers, expected, strict=True):
        assert agree(server, answer["embedding"], alone["embedding"])
    assert len({answer["code"].tobytes() for answer in answers}) == 16


def test_one_box_for_each_image_of_a_request(server, images) -> None:
    crop = "0,0,0.5,0.5;;0.5,0.5,1,1"
    answer = triton.embed(server.grpc_url, images[:3], crop=crop)
    for row, text in enumerate(crop.split(";")):
        parameters = {"crop": text} if text else {}
        alone = triton.embed(server.grpc_url, [images[row]], **parameters)
        assert agree(server, answer["embedding"][row], alone["embedding"][0])


@pytest.mark.parametrize("crop", ["0,0,1", "0.5,0,0.5,1", "0,0,1,1;0,0,1,1", "nonsense"])
def test_a_bad_crop_is_refused(server, images, crop: str) -> None:
    with pytest.raises(grpcclient.InferenceServerException, match="crop") as caught:
        triton.embed(server.grpc_url, images[:1], crop=crop)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_version_is_readable_through_the_model_configuration(server) -> None:
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        parameters = client.get_model_config("embedder").config.parameters
    assert parameters["unified_embedding.version"].string_value == server.spec.version
    assert parameters["unified_embedding.engine"].string_value == server.engine


def test_the_curl_line_of_the_readme(server, images) -> None:
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/unified_embedding/infer",
        data=images[0],
        headers={"Inference-Header-Content-Length": "0"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        body = response.read()
        length = int(response.headers["Inference-Header-Content-Length"])
    described = {item["name"]: item for item in json.loads(body[:length])["outputs"]}
    offset, values = length, {}
    for name, item in described.items():
        size = item["parameters"]["binary_data_size"]
        values[name] = body[offset : offset + size]
        offset += size
    expected = triton.embed(server.grpc_url, images[:1])
    assert values["code"] == expected["code"].tobytes()
    assert values["embedding"] == expected["embedding"].tobytes()
