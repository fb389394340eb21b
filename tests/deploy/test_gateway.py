"""The gateway's contract, against the real server: what passes, what is refused and how."""

import base64
import json
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from drills import SERVED_S, until

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("msgspec", reason="the extra `api` is not installed")

import grpc
from gateways import KEYS, MODEL, SERVICE, Rig, bearer, gateway, pictures, refused, stub
from google.protobuf import descriptor_pb2
from triton_calls import settled
from tritonclient.grpc import service_pb2 as pb

from unified_embedding.client import TLS, EmbedderClient
from unified_embedding.client import bearer as token
from unified_embedding.errors import Overloaded
from unified_embedding.gateway import folder
from unified_embedding.serving.local_server import LocalServer, child, free_ports, start

pytestmark = pytest.mark.e2e

KEY, OTHER = KEYS[0][1], KEYS[1][1]
REQUEST_BYTES = 1_000_000
ENVELOPE = 65_536
OPEN = {"ServerLive", "ServerReady", "ServerMetadata"}
NAMED = {"ModelReady", "ModelMetadata", "ModelConfig"}
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
CLOSED = [name for name in METHODS if name not in OPEN | NAMED | {"ModelInfer", "ModelStreamInfer"}]
_REACHED = re.compile(
    r'Process for (\w+), rpc_ok=1, \d+ step START|HTTP request: ([^"]+)'
    r"|prepared: \S+ request id: ours, model: (\w+)"
)
_ALWAYS = ("ModelInferHandler", "2 /v2/models/unified_embedding/infer", "0 /v2/health/ready")


@dataclass(frozen=True)
class Place:
    """The server, the API and the gateway before both."""

    server: LocalServer
    rig: Rig

    def reached(self) -> list[str]:
        """What reached Triton by its own log: methods, HTTP requests, models that were to infer.

        Health checks, and what the API asks by itself, have no request id and are left out.
        """
        found = _REACHED.findall(self.server.log.read_text(errors="replace"))
        told = [method or request or model for method, request, model in found]
        return [one for one in told if one not in _ALWAYS]

    def reached_since(self, before: list[str]) -> list[str]:
        """The same without what was there before, once Triton writes nothing more."""
        return settled(self.reached, 0.3)[len(before) :]


@pytest.fixture(scope="module")
def place(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    here = tmp_path_factory.mktemp("gateway")
    (api_port,) = free_ports(1)
    api = f"127.0.0.1:{api_port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("UNIFIED_EMBEDDING_MAX_REQUEST_BYTES", str(REQUEST_BYTES))
        server = start(repository, here / "triton.log", ["--log-verbose=1"])
        try:
            with gateway(here / "folder", [server], api=api, api_bytes=2 * REQUEST_BYTES) as rig:
                command = [sys.executable, "-m", "unified_embedding.cli", "api"]
                command += ["--server", server.grpc_url, "--port", str(api_port)]
                command += ["--keys", str(rig.folder / folder.API_KEYS)]
                command += ["--origin", "https://shop.example"]
                with (here / "api.log").open("wb") as log, child(command, stdout=log, stderr=log):
                    until(lambda: rig.http("GET", "/healthz")[0] == 200, SERVED_S, "no server")
                    ready = "/v1/health/ready"
                    until(lambda: rig.http("GET", ready)[0] == 200, SERVED_S, "no API")
                    yield Place(server, rig)
        finally:
            assert server.stop() == 0


@pytest.fixture(scope="module")
def rig(place: Place) -> Rig:
    return place.rig


@pytest.fixture(scope="module")
def calls(rig: Rig) -> Iterator[object]:
    with rig.channel() as channel:
        yield stub(channel)


@pytest.fixture
def nothing_reaches_triton(place: Place) -> Iterator[None]:
    before = place.reached()
    yield
    assert place.reached_since(before) == []


def test_the_message_descriptor_is_that_of_the_protocol(root: Path) -> None:
    """What Envoy reads model names and shapes by, compared with tritonclient's own descriptor."""
    text = (root / "deploy/gateway/envoy.yaml").read_text()
    raw = base64.b64decode(re.search(r"inline_bytes: (\S+)", text)[1])
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(raw).file
    (service,) = file.service
    truth = pb.DESCRIPTOR.services_by_name[service.name]
    messages = {message.name: message for message in file.message_type}

    def compare(ours: descriptor_pb2.DescriptorProto, theirs: object) -> int:
        for field in ours.field:
            real = theirs.fields_by_name[field.name]
            assert (field.number, field.type) == (real.number, real.type), field.name
            assert (field.label == field.LABEL_REPEATED) == real.is_repeated, field.name
            if real.message_type is not None:
                compare(messages[field.type_name.rpartition(".")[2]], real.message_type)
        return len(ours.field)

    assert f"/{file.package}.{service.name}" == SERVICE
    for method in service.method:
        real = truth.methods_by_name[method.name].input_type
        assert compare(messages[method.input_type.rpartition(".")[2]], real) >= 1
    assert {method.name for method in service.method} == NAMED | {"ModelInfer"}


def test_one_address_has_grpc_and_the_http_api(place: Place, rig: Rig, image: bytes) -> None:
    with EmbedderClient(place.server.grpc_url) as direct:
        truth = direct.embed([image])
    tls = TLS(rig.folder / folder.CERTIFICATE)
    with EmbedderClient(f"localhost:{rig.port}", tls=tls, metadata=token(KEY)) as client:
        answer = client.embed([image, image])
        assert client.is_ready()
        assert client.info().version == truth.version
    assert np.array_equal(answer.embedding, np.repeat(truth.embedding, 2, axis=0))
    status, _, body = rig.http(
        "POST", "/v1/embeddings?encoding_format=base64", KEY, image, content_type="image/jpeg"
    )
    assert status == 200
    vector = np.frombuffer(base64.b64decode(json.loads(body)["data"][0]["embedding"]), "<f4")
    assert np.array_equal(vector, truth.embedding[0])
    assert rig.http("GET", "/openapi.json")[0] == 200


@pytest.mark.usefixtures("nothing_reaches_triton")
def test_a_call_without_a_known_key_is_refused(rig: Rig, calls) -> None:
    for header in (None, "Bearer wrong", "Bearer ", "Basic c2VhcmNoOnM=", f"Bearer {KEY}x", "x"):
        given = {} if header is None else {"authorization": header}
        for call, request in (
            (calls.ModelInfer, pictures([b"x"])),
            (calls.ServerLive, pb.ServerLiveRequest()),
            (calls.RepositoryIndex, pb.RepositoryIndexRequest()),
        ):
            code, sentence = refused(call, request, metadata=list(given.items()))
            assert code == grpc.StatusCode.UNAUTHENTICATED
            assert "authorization: Bearer KEY" in sentence
        for path in ("/v1/models", "/v1/embeddings", "/v2/health/ready", "/"):
            status, _, body = rig.http("GET", path, **given)
            assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")


def test_a_browser_may_ask_without_a_key_whether_it_may_call(rig: Rig) -> None:
    asked = {"origin": "https://shop.example", "access_control_request_method": "POST"}
    status, headers, _ = rig.http("OPTIONS", "/v1/embeddings", **asked)
    assert status == 200
    assert headers["access-control-allow-origin"] == "https://shop.example"
    assert rig.http("OPTIONS", "/v1/embeddings")[0] == 401


def test_a_browser_brings_its_key_once(rig: Rig) -> None:
    status, headers, _ = rig.http("GET", f"/?key={KEY}")
    assert (status, headers["location"]) == (303, f"https://localhost:{rig.port}/")
    cookie, *flags = headers["set-cookie"].split("; ")
    assert {"Secure", "HttpOnly", "SameSite=Strict"} <= set(flags)
    assert rig.http("GET", "/v1/models", cookie=cookie)[0] == 200
    # The page's own files come from the API, which has none without an index.
    status, headers, _ = rig.http("GET", "/app.js", cookie=cookie)
    assert "x-envoy-upstream-service-time" in headers
    for path in ("/?key=wrong", "/", "/app.js", "/examples", f"/v1/models?key={KEY}"):
        assert rig.http("GET", path, cookie="unified-embedding-key=wrong")[0] == 401
    assert KEY not in rig.log.read_text()


def test_nobody_names_himself(rig: Rig, calls) -> None:
    calls.ServerLive(pb.ServerLiveRequest(), metadata=[*bearer(KEY), ("x-key-name", "ads")])
    status, headers, _ = rig.http("GET", "/v1/health/live", x_key_name="ads", x_request_id="mine")
    assert (status, headers["x-request-id"]) == (200, "mine")
    line = logged(rig, lambda line: line["request"] == "mine")
    assert line["key"] is None
    assert logged(rig, lambda line: line["path"].endswith("/ServerLive") and line["status"] == 200)[
        "key"
    ] in (None, "search")
    assert not [line for line in rig.lines() if line["key"] == "ads"]


def test_the_calls_that_are_open(calls) -> None:
    key = bearer(KEY)
    assert calls.ServerLive(pb.ServerLiveRequest(), metadata=key).live
    assert calls.ServerReady(pb.ServerReadyRequest(), metadata=key).ready
    assert calls.ServerMetadata(pb.ServerMetadataRequest(), metadata=key).name == "triton"
    for name in (MODEL, "embedder"):
        assert calls.ModelReady(pb.ModelReadyRequest(name=name), metadata=key).ready
        assert calls.ModelMetadata(pb.ModelMetadataRequest(name=name), metadata=key).name == name
        config = calls.ModelConfig(pb.ModelConfigRequest(name=name), metadata=key).config
        assert config.name == name


@pytest.mark.usefixtures("nothing_reaches_triton")
def test_every_other_call_by_grpc_is_refused(rig: Rig, calls) -> None:
    assert len(CLOSED) >= 12
    for method in CLOSED:
        request = getattr(pb, f"{method}Request")()
        closed(refused(getattr(calls, method), request, metadata=bearer(KEY)))
    with pytest.raises(grpc.RpcError) as error:
        list(calls.ModelStreamInfer(iter([pictures([b"x"])]), metadata=bearer(KEY), timeout=60))
    closed((error.value.code(), error.value.details()))
    with rig.channel() as channel:
        for path in ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
                     "/inference.GRPCInferenceService/Nothing"):  # fmt: skip
            closed(refused(channel.unary_unary(path), b"", metadata=bearer(KEY)))


@pytest.mark.usefixtures("nothing_reaches_triton")
def test_inner_models_are_closed(calls) -> None:
    for model in ("preprocess", "embedder", "binarizer", "", "unified_embedding2"):
        closed(refused(calls.ModelInfer, pictures([b"x"], model), metadata=bearer(KEY)))
        for method in NAMED if model != "embedder" else ():
            request = getattr(pb, f"{method}Request")(name=model)
            closed(refused(getattr(calls, method), request, metadata=bearer(KEY)))


@pytest.mark.usefixtures("nothing_reaches_triton")
def test_no_wording_of_a_message_opens_an_inner_model(rig: Rig) -> None:
    """A field given twice, two messages in one call, a compressed one, half a one, none."""
    good, inner = (pictures([b"x"], model).SerializeToString() for model in (MODEL, "embedder"))
    with rig.channel() as channel:
        one = channel.unary_unary(f"{SERVICE}/ModelInfer")
        many = channel.stream_unary(f"{SERVICE}/ModelInfer")
        # Of a field that is given twice the last counts (protobuf's encoding rules).
        closed(refused(one, good + inner, metadata=bearer(KEY)))
        closed(refused(many, iter([inner, good]), metadata=bearer(KEY)))
        for damaged in (b"\xff\xff\xff", inner[:-3] + b"\xff", b""):
            code, _ = refused(one, damaged, metadata=bearer(KEY))
            assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT)
        code, _ = refused(many, iter([]), metadata=bearer(KEY))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        large = pictures([bytes(100_000)]).SerializeToString()
        packed = {"metadata": bearer(KEY), "compression": grpc.Compression.Gzip}
        code, sentence = refused(one, large, **packed)
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert "compressed" in sentence


@pytest.mark.usefixtures("nothing_reaches_triton")
def test_tritons_own_http_is_closed(rig: Rig) -> None:
    for path in (
        "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/unified_embedding/infer",
        "/v2/models/embedder/infer", "/v2/models/unified_embedding/generate", "/v2/models/stats",
        "/v2/repository/index", "/v2/repository/models/embedder/unload", "/v2/logging",
        "/v2/systemsharedmemory/status", "/v2/trace/setting", "/v2/cudasharedmemory/status",
        "/v1/../v2/repository/index", "//v2/repository/index", "/%76%32/repository/index",
        "/v1/./../v2/trace/setting",
    ):  # fmt: skip
        for method in ("GET", "POST"):
            status, _, body = rig.http(method, path, KEY)
            error = json.loads(body)["error"]
            assert (status, error["code"]) == (403, "not_open"), path
            assert "HTTP has /v1" in error["message"]


@pytest.mark.usefixtures("nothing_reaches_triton")
def test_what_is_nowhere_is_said_to_be_nowhere(rig: Rig) -> None:
    for path in ("/metrics", "/stats", "/etc/passwd"):
        status, _, body = rig.http("GET", path, KEY)
        assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
    status, _, _ = rig.http("GET", "/v1%2f..%2fv2/repository/index", KEY)
    assert status == 400


def test_triton_would_have_answered(place: Place) -> None:
    """What was refused above reaches a server that is asked directly: its log tells the truth."""
    before = place.reached()
    with grpc.insecure_channel(place.server.grpc_url) as channel:
        stub(channel).ModelStatistics(pb.ModelStatisticsRequest())
        refused(stub(channel).ModelInfer, pictures([b"x"], "embedder"))
    assert place.reached_since(before) == ["ModelStatistics"]


def test_bodies_are_bounded_as_the_contract_says(
    place: Place, rig: Rig, calls, image: bytes
) -> None:
    before = place.reached()
    within = pictures([image, image + bytes(REQUEST_BYTES)])
    code, sentence = refused(calls.ModelInfer, within, metadata=bearer(KEY))
    assert code == grpc.StatusCode.INVALID_ARGUMENT  # The server's own words.
    assert "UNIFIED_EMBEDDING_MAX_REQUEST_BYTES" in sentence
    assert len(place.reached_since(before)) == 2  # The ensemble, and its first step.
    before = place.reached()
    beyond = pictures([bytes(REQUEST_BYTES + ENVELOPE)])
    code, sentence = refused(calls.ModelInfer, beyond, metadata=bearer(KEY))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"larger than {REQUEST_BYTES + ENVELOPE} bytes" in sentence
    status, _, body = rig.http(
        "POST", "/v1/embeddings", KEY, bytes(2 * REQUEST_BYTES + 1), content_type="image/jpeg"
    )
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")
    assert place.reached_since(before) == []


def test_our_client_divides_what_is_too_large(rig: Rig, image: bytes) -> None:
    """Each picture fits, all of them together do not."""
    images = [image + bytes(REQUEST_BYTES // 3 - len(image)) for _ in range(4)]
    tls = TLS(rig.folder / folder.CERTIFICATE)
    with EmbedderClient(f"localhost:{rig.port}", tls=tls, metadata=token(KEY)) as client:
        answer = client.embed(images)
        assert np.array_equal(answer.code, np.repeat(client.embed([image]).code, 4, axis=0))


def test_late_and_bad_requests_neither_eject_a_server_nor_are_repeated(
    place: Place, rig: Rig, calls, image: bytes
) -> None:
    """A hundred calls of a caller whose clock is an hour behind, and a hundred bad pictures."""
    before = place.reached()
    late = pictures([image], deadline=f"{time.time() - 3600:.3f}")
    codes = [refused(calls.ModelInfer, late, metadata=bearer(KEY))[0] for _ in range(100)]
    assert set(codes) == {grpc.StatusCode.CANCELLED}
    bad = pictures([b"no picture"])
    codes = [refused(calls.ModelInfer, bad, metadata=bearer(KEY))[0] for _ in range(100)]
    assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}
    assert place.reached_since(before).count(MODEL) == 200
    assert rig.counter("upstream_rq_retry") == 0
    assert rig.counter("outlier_detection.ejections_enforced_total") == 0
    assert rig.counter("membership_healthy") == 1
    assert calls.ModelInfer(pictures([image]), metadata=bearer(KEY)).outputs


def test_the_log_says_who_what_and_how_long(rig: Rig, calls, image: bytes) -> None:
    request = pictures([image] * 3)
    metadata = [*bearer(OTHER), ("x-request-id", "the-request")]
    calls.ModelInfer(request, metadata=metadata)
    line = logged(rig, lambda line: line["request"] == "the-request")
    assert line["key"] == "ads"
    assert (line["path"], line["code"], line["pictures"]) == (f"{SERVICE}/ModelInfer", "OK", 3)
    assert line["version"] == "a-version"
    assert line["bytes"] == request.ByteSize() + 5  # gRPC's own head of a message.
    assert 0 < line["ms"] < 60_000
    assert line["attempts"] == 1
    rig.http("GET", "/v1/models?secret=s", KEY, x_request_id="by-http")
    line = logged(rig, lambda line: line["request"] == "by-http")
    assert (line["key"], line["path"], line["status"]) == ("search", "/v1/models", 200)
    text = rig.log.read_text()
    assert not [key for _, key in KEYS if key in text]
    assert "secret=s" not in text


def test_keys_are_rotated_without_a_restart(rig: Rig, calls, tmp_path: Path) -> None:
    """The same file for gateway and API: a new key, then the old one revoked, then damage."""

    def statuses(key: str) -> tuple[str, int]:
        try:
            calls.ServerLive(pb.ServerLiveRequest(), metadata=bearer(key))
            grpc_code = "OK"
        except grpc.RpcError as error:
            grpc_code = error.code().name
        return grpc_code, rig.http("GET", "/v1/models", key)[0]

    new = "n" * 40
    yes, no = ("OK", 200), ("UNAUTHENTICATED", 401)
    try:
        assert (statuses(KEY), statuses(new)) == (yes, no)
        folder.write_keys(rig.folder, [*KEYS, ("search", new)])
        until(lambda: (statuses(KEY), statuses(new)) == (yes, yes), 5, "the new key is not known")
        folder.write_keys(rig.folder, [("search", new), KEYS[1]])
        until(lambda: (statuses(KEY), statuses(new)) == (no, yes), 5, "the old key is still known")
        # What is malformed leaves the keys as they are.
        (tmp_path / "keys").write_text('{"resources": [')
        (tmp_path / "keys").replace(rig.folder / folder.ENVOY_KEYS)
        damaged = "extension_config_discovery.http_filter.keys.(update_failure|config_fail)"
        until(lambda: rig.gateway.ask(f"/stats?filter={damaged}&usedonly"), 5, "it was not read")
        assert statuses(new) == yes
    finally:
        folder.write_keys(rig.folder, KEYS)
    until(lambda: (statuses(KEY), statuses(new)) == (yes, no), 5, "the old keys are not back")


def test_the_certificate_is_renewed_without_a_restart(rig: Rig) -> None:
    def presented() -> str:
        return ssl.get_server_certificate(("localhost", rig.port))

    old = (rig.folder / folder.CERTIFICATE).read_text()
    assert presented().split() == old.split()
    folder.certify(rig.folder)
    new = (rig.folder / folder.CERTIFICATE).read_text()
    until(lambda: presented().split() == new.split() != old.split(), 5, "the old certificate stays")
    assert rig.http("GET", "/healthz")[0] == 200


def test_a_key_has_its_rate_and_no_other_pays_for_it(
    place: Place, image: bytes, tmp_path: Path
) -> None:
    with gateway(tmp_path, [place.server], rate=2) as slow, slow.channel() as channel:
        until(lambda: slow.http("GET", "/healthz")[0] == 200, SERVED_S, "no server")
        calls, before = stub(channel), place.reached()
        began = time.monotonic()
        futures = [
            calls.ServerLive.future(pb.ServerLiveRequest(), metadata=bearer(KEY), timeout=60)
            for _ in range(200)
        ]
        errors = [error for future in futures if (error := future.exception()) is not None]
        # Two at once, and two for each second that it took.
        most = 2 + 2 * (1 + int(time.monotonic() - began))
        assert 200 - most <= len(errors) < 200
        assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "2 calls a second" in errors[0].details()
        assert calls.ServerLive(pb.ServerLiveRequest(), metadata=bearer(OTHER)).live
        tls = TLS(slow.folder / folder.CERTIFICATE)
        url = f"localhost:{slow.port}"
        with (
            EmbedderClient(url, tls=tls, metadata=token(KEY)) as client,
            pytest.raises(Overloaded, match="2 calls a second"),
        ):
            all(client.is_ready() for _ in range(100))
        answers = [slow.http("GET", "/v1/models", KEY) for _ in range(20)]
        _, headers, body = next(answer for answer in answers if answer[0] == 429)
        assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
        assert int(headers["retry-after"]) >= 0
        reached = place.reached_since(before)
        assert reached.count("ServerLive") == 200 - len(errors) + 1


def closed(answer: tuple[grpc.StatusCode, str]) -> None:
    code, sentence = answer
    assert code == grpc.StatusCode.PERMISSION_DENIED
    assert "of the model unified_embedding ModelInfer" in sentence


def logged(rig: Rig, wanted: Callable[[dict], bool]) -> dict:
    """The first line of the access log that is wanted; Envoy writes it a moment later."""
    until(lambda: any(map(wanted, rig.lines())), 5, "no such line in the log")
    return next(filter(wanted, rig.lines()))
