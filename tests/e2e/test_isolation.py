"""What one request does to its neighbours: nothing. A hostile caller beside good ones, for real."""

import io
import json
import re
import shutil
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unified_embedding.gallery import Gallery
from unified_embedding.serving.local_server import running

grpc = pytest.importorskip("grpc", reason="the extra `client` is missing")
pb = pytest.importorskip("tritonclient.grpc.service_pb2")
service_pb2_grpc = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")

pytestmark = pytest.mark.e2e

GOOD_CALLERS = 6
# Ten times what a call takes on a busy machine: ends what hangs, and fails the test.
GUARD_S = 60.0


def element(data: bytes, length: int | None = None) -> bytes:
    """One BYTES element, with a false length when one is given."""
    return struct.pack("<I", len(data) if length is None else length) + data


def png(mode: str, size: tuple[int, int], colour: Any = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


class Caller:
    """A connection that sends whatever it is told to."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def send(
        self, model: str, name: str, kind: str, shape: list[int], raw: bytes, **parameters: str
    ) -> Any:
        tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=shape)
        request = pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[raw])
        for key, value in parameters.items():
            request.parameters[key].string_param = value
        return self._stub.ModelInfer(request, timeout=GUARD_S)

    def pictures(self, *images: bytes, **parameters: str) -> dict[str, bytes]:
        raw = b"".join(map(element, images))
        shape = [len(images), 1]
        found = self.send("unified_embedding", "image", "BYTES", shape, raw, **parameters)
        names = [tensor.name for tensor in found.outputs]
        return dict(zip(names, found.raw_output_contents, strict=True))

    def refused(self, call: Callable[[], Any]) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return caught.value

    def close(self) -> None:
        self._channel.close()


@pytest.fixture(scope="module")
def images(gallery: Gallery) -> list[bytes]:
    return [picture.path.read_bytes() for picture in gallery.role("shot")[:GOOD_CALLERS]]


@pytest.fixture
def caller(server: Any) -> Iterator[Caller]:
    caller = Caller(server.grpc_url)
    yield caller
    caller.close()


def beside(
    url: str, images: list[bytes], calls: int, hostile: list[Callable[[Caller], None]]
) -> tuple[int, int]:
    """Make `calls` good calls while the hostile callers repeat theirs; how often each did.

    Every good call must be answered, bit for bit as on an idle server.
    """
    idle = Caller(url)
    expected = [idle.pictures(image) for image in images]
    idle.close()
    done, problems, attacks = threading.Event(), [], [0] * len(hostile)

    def good(index: int) -> None:
        caller = Caller(url)
        for _ in range(calls // len(images)):
            try:
                if caller.pictures(images[index]) != expected[index]:
                    problems.append("other bits")
            except grpc.RpcError as error:
                problems.append(f"{error.code()}: {error.details()}")
        caller.close()

    def bad(index: int) -> None:
        caller = Caller(url)
        while not done.is_set() or not attacks[index]:
            try:
                hostile[index](caller)
            except BaseException as error:
                problems.append(f"hostile call {index}: {error!r}")
                break
            attacks[index] += 1
            done.wait(0.005)
        caller.close()

    good_threads = [threading.Thread(target=good, args=(i,)) for i in range(len(images))]
    bad_threads = [threading.Thread(target=bad, args=(i,)) for i in range(len(hostile))]
    for thread in [*bad_threads, *good_threads]:
        thread.start()
    for thread in good_threads:
        thread.join()
    done.set()
    for thread in bad_threads:
        thread.join()
    assert problems == []
    return calls // len(images) * len(images), sum(attacks)


PLANTED = {
    "preprocess": """
_real = load_pixels
def load_pixels(image, *rest):
    if image.endswith(b"planted"):
        raise RuntimeError("planted")
    return _real(image, *rest)
""",
    "embedder": """
_real = OpenVinoEngine.embed
def _planted(engine, pixels):
    if any((picture == (1, 2, 3)).all() for picture in pixels):
        raise KeyError("planted")
    return _real(engine, pixels)
OpenVinoEngine.embed = _planted
""",
    "binarizer": """
_real = pack
def pack(features):
    if (features[:, 0] == 12345).any():
        raise MemoryError("planted")
    return _real(features)
""",
}


def test_a_planted_exception_in_each_model_fails_its_own_request_alone(
    repository: Path, tmp_path: Path, images: list[bytes]
) -> None:
    planted = tmp_path / "model_repository"
    shutil.copytree(repository, planted)
    for name, code in PLANTED.items():
        with (planted / name / "1" / "model.py").open("a") as file:
            file.write(code)
    marks: list[str] = []

    def fails(call: Callable[[Caller], Any]) -> Callable[[Caller], None]:
        def attack(caller: Caller) -> None:
            error = caller.refused(lambda: call(caller))
            assert error.code() == grpc.StatusCode.INTERNAL
            found = re.search(
                r"the server failed on this request; .*, under (\w{8})$", error.details()
            )
            assert found is not None, error.details()
            assert "/" not in error.details()
            assert "Traceback" not in error.details()
            marks.append(found[1])

        return attack

    with running(planted) as server:
        dim = json.loads((planted / "embedder/1/spec.json").read_text())["dim"]
        features = np.zeros((1, dim), np.float32)
        features[0, 0] = 12345
        good, bad = beside(
            server.grpc_url,
            images,
            300,
            [
                fails(lambda caller: caller.pictures(images[0] + b"planted")),
                fails(lambda caller: caller.pictures(png("RGB", (224, 224), (1, 2, 3)))),
                fails(
                    lambda caller: caller.send(
                        "binarizer", "features", "FP32", [1, dim], features.tobytes()
                    )
                ),
            ],
        )
        # What a model process says may reach the log after the answer that names it.
        waiting, end = set(marks), time.monotonic() + 30
        while waiting and time.monotonic() < end:
            time.sleep(0.1)
            log = server.log.read_text(errors="replace")
            waiting = {mark for mark in waiting if f"{mark}: Traceback" not in log}
    assert len(marks) == bad
    for kind in ("RuntimeError", "KeyError", "MemoryError"):
        assert f"{kind}: " in log
    assert waiting == set()
    print(f"{good} good calls answered beside {bad} that met a planted exception")


def test_false_lengths_harm_no_neighbour_and_the_server_ends_in_order(
    repository: Path, images: list[bytes]
) -> None:
    def too_long(caller: Caller) -> None:
        raw = element(images[0], len(images[0]) + 9)
        error = caller.refused(
            lambda: caller.send("unified_embedding", "image", "BYTES", [1, 1], raw)
        )
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT

    def far_too_long(caller: Caller) -> None:
        raw = element(images[0]) + element(images[1], 2**32 - 1)
        error = caller.refused(lambda: caller.send("preprocess", "image", "BYTES", [2, 1], raw))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT

    with running(repository) as server:
        good, bad = beside(server.grpc_url, images, 1500, [too_long, far_too_long])
        assert server.stop() == 0
    print(f"{good} good calls answered beside {bad} with a false length")


def test_bytes_that_are_no_utf8_in_an_http_parameter_harm_their_own_request(
    server: Any, images: list[bytes]
) -> None:
    data = element(images[0])
    for parameter in (b'"crop":"\xff\xfe"', b'"\xff":"0,0,1,1"', b'"deadline":"\xc3"'):

        def attack(caller: Caller, parameter: bytes = parameter) -> None:
            head = b'{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","parameters":'
            head += b'{"binary_data_size":%d}}],"parameters":{%s}}' % (len(data), parameter)
            code, text = post(server, "unified_embedding", head, data)
            assert code == 400
            assert "a request parameter is not text in UTF-8" in text
            assert "/" not in text.replace("utf-8/", "")

        beside(server.grpc_url, images, 60, [attack])


def post(server: Any, model: str, head: bytes, data: bytes) -> tuple[int, str]:
    """Status and text of an HTTP answer to a JSON head with binary data after it."""
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/infer",
        data=head + data,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    try:
        with urllib.request.urlopen(request, timeout=GUARD_S) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("parameters", "image", "code", "status"),
    [
        ({"deadline": "1"}, None, "CANCELLED", 400),
        ({"deadline": "soon"}, None, "INVALID_ARGUMENT", 400),
        ({}, b"text", "INVALID_ARGUMENT", 400),
    ],
)
def test_the_codes_of_docs_serving(
    server: Any,
    caller: Caller,
    images: list[bytes],
    parameters: dict[str, str],
    image: bytes | None,
    code: str,
    status: int,
) -> None:
    data = image or images[0]
    error = caller.refused(lambda: caller.pictures(data, **parameters))
    assert error.code().name == code
    raw = element(data)
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    assert post(server, "unified_embedding", head, raw)[0] == status


@pytest.mark.parametrize("model", ["unified_embedding", "preprocess"])
@pytest.mark.parametrize(
    "shape", [[2**62, 1], [2**32, 1], [0, 1], [-1, 1], [-(2**63), 1], [1, 2**62], [17, 1], [1], []]
)
def test_a_shape_that_is_no_batch_of_what_was_sent_is_refused(
    server: Any, caller: Caller, images: list[bytes], model: str, shape: list[int]
) -> None:
    for raw in (element(images[0]), b""):
        error = caller.refused(lambda raw=raw: caller.send(model, "image", "BYTES", shape, raw))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caller.pictures(images[0])["code"]


@pytest.mark.parametrize(
    ("model", "name", "kind", "shape"),
    [
        ("binarizer", "features", "FP32", [1, 2**62]),
        ("binarizer", "features", "FP32", [16, 2**60]),
        ("binarizer", "features", "FP32", [1, 0]),
        ("binarizer", "features", "FP32", [2**62, 1280]),
        ("embedder", "pixels", "UINT8", [2**54, 224, 224, 3]),
        ("embedder", "pixels", "UINT8", [1, 2**32, 2**32, 3]),
        ("embedder", "pixels", "UINT8", [2**32, 224, 224, 3]),
    ],
)
def test_a_shape_whose_size_overflows_ends_no_process(
    server: Any, caller: Caller, images: list[bytes], model: str, name: str, kind: str, shape: Any
) -> None:
    error = caller.refused(lambda: caller.send(model, name, kind, shape, b""))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caller.pictures(images[0])["code"]


def test_more_pictures_than_a_request_may_have_are_refused_by_the_step_itself(
    server: Any, caller: Caller
) -> None:
    raw = element(png("1", (1, 1))) * 100_000
    error = caller.refused(lambda: caller.send("preprocess", "image", "BYTES", [100_000, 1], raw))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "100000 images; send 1 to 16" in error.details()


@pytest.mark.parametrize("name", ["crop", "deadline"])
def test_a_huge_parameter_is_echoed_in_80_characters(
    server: Any, caller: Caller, images: list[bytes], name: str
) -> None:
    error = caller.refused(lambda: caller.pictures(images[0], **{name: "7x" * 10_000}))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert 60 < error.details().count("7x") * 2 <= 80


def test_a_request_over_the_budget_of_pixels_is_refused_before_it_is_decoded(
    server: Any, images: list[bytes]
) -> None:
    """A legal request of 131 kB held an instance for 18 s; two left nothing for 96 others."""
    bombs = [png("1", (7000, 7000))] * 16

    def attack(caller: Caller) -> None:
        error = caller.refused(lambda: caller.pictures(*bombs))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "UNIFIED_EMBEDDING_MAX_REQUEST_PIXELS" in error.details()

    good, bad = beside(server.grpc_url, images, 96, [attack, attack])
    assert good == 96
    print(f"{good} calls answered beside {bad} requests of 784 million pixels")


def test_small_requests_do_not_wait_for_large_ones(server: Any, images: list[bytes]) -> None:
    large = png("1", (7000, 7000))
    outcomes = []

    def attack(caller: Caller) -> None:
        try:
            caller.pictures(large)
            outcomes.append("answered")
        except grpc.RpcError as error:
            outcomes.append(f"{error.code().name}: {error.details()}")

    # More of them than there are instances.
    good, _ = beside(server.grpc_url, images, 96, [attack] * 4)
    assert good == 96
    answered = outcomes.count("answered")
    assert answered
    assert all(
        re.match("CANCELLED: .*too much work", outcome)
        for outcome in outcomes
        if outcome != "answered"
    )
    print(f"beside 96 small calls {answered} of {len(outcomes)} large ones were answered")


def test_the_client_sends_what_exceeds_the_budget_singly(server: Any) -> None:
    from unified_embedding.client import EmbedderClient

    large = [png("1", (7000, 7000)), png("1", (7000, 7001)), png("1", (100, 100))]
    with EmbedderClient(server.grpc_url, timeout=GUARD_S) as client:
        alone = [client.embed([image]).code[0] for image in large]
        together = client.embed_each(large)
    assert together.rows == (0, 1, 2)
    assert np.array_equal(together.embedded.code, alone)
