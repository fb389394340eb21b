"""A KServe v2 gRPC server in this process that serves any bytes as a picture.

It is what the clients talk to where a test must decide how the server behaves: how long it
takes, when it is overloaded, what it refuses, which version it states. Its vectors come from a
hash of picture and crop, so that tests know the truth without asking it.

`serving` runs it in this process; `mortal` in one of its own, which a picture can kill and
which is then started again on the same port.
"""

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

VERSION = "0123456789ab"
ENGINE = "test-fp32-0123456789ab"
DIM = 16
POISON = b"poison"
Failure = tuple[grpc.StatusCode, str]
DEAD_STUB: Failure = (
    grpc.StatusCode.INTERNAL,
    "Failed to process the request(s) for model instance 'preprocess_0_0', message: Stub process "
    "'preprocess_0_0' is not healthy.",
)


def vector(image: bytes, crop: str = "") -> np.ndarray:
    """The embedding the peer answers, float32 [DIM]."""
    digest = hashlib.sha256(image + crop.encode()).digest()
    return np.frombuffer(digest[:DIM], np.int8).astype(np.float32)


def vectors(images: Sequence[bytes], crop: str = "") -> np.ndarray:
    return np.stack([vector(image, crop) for image in images])


def codes(images: Sequence[bytes], crop: str = "") -> np.ndarray:
    return np.packbits(vectors(images, crop) > 0, axis=1)


@dataclass(frozen=True)
class Request:
    """One ModelInfer call as it arrived."""

    images: tuple[bytes, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, str]


@dataclass
class Peer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Set the attributes to change its behaviour; `requests` is what it received.

    `respond` sees every request (counted from 1) before it is answered: it may wait, and it
    may return a failure to answer with. `alter` may change a good answer. `metadata` is what came
    with each call; a call without `token` is refused if there is one.
    """

    max_batch_size: int = 4
    url: str = ""
    stamp: Callable[[int], str] = lambda number: f"{VERSION} {ENGINE}"
    respond: Callable[[int, Request], Failure | None] = lambda number, request: None
    alter: Callable[[Any], None] = lambda response: None
    requests: list[Request] = field(default_factory=list)
    config_version: str = VERSION
    config_engine: str = ENGINE
    config_compatible: str = ""
    unknown: bool = False
    token: str = ""
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name == "unified_embedding")

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.unknown:
            message = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, message)
        response = service_pb2.ModelConfigResponse()
        config = response.config
        config.max_batch_size = self.max_batch_size
        if request.name == "embedder":
            config.input.add(name="pixels", dims=[224, 224, 3])
            config.output.add(name="embedding", dims=[DIM])
            config.output.add(name="features", dims=[DIM])
            config.parameters["unified_embedding.version"].string_value = self.config_version
            config.parameters["unified_embedding.engine"].string_value = self.config_engine
            if self.config_compatible:
                name = "unified_embedding.compatible_with"
                config.parameters[name].string_value = self.config_compatible
        return response

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = service_pb2.ModelStatisticsResponse()
        rows = sum(len(request.images) for request in self.requests)
        for name in ("binarizer", "embedder", "preprocess", "unified_embedding"):
            model = response.model_stats.add(name=name, inference_count=rows, execution_count=1)
            model.inference_stats.success.count = len(self.requests)
            model.inference_stats.success.ns = 5_000_000 * len(self.requests)
            model.inference_stats.queue.ns = 2_000_000 * len(self.requests)
        return response

    def ModelInfer(self, message: Any, context: Any) -> Any:  # noqa: N802
        request = Request(
            images=tuple(_elements(message.raw_input_contents[0])),
            outputs=tuple(output.name for output in message.outputs),
            parameters={key: value.string_param for key, value in message.parameters.items()},
        )
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            failure = self.respond(number, request) or _refusal(request)
        finally:
            with self._lock:
                self._at_once -= 1
        if failure is not None:
            context.abort(*failure)
        response = _answer(request, self.stamp(number))
        self.alter(response)
        return response


def fail_first(count: int, code: grpc.StatusCode) -> Callable[[int, Request], Failure | None]:
    """Answer the first `count` requests with `code`."""
    return lambda number, request: (code, "as told") if number <= count else None


def slowly(seconds: float) -> Callable[[int, Request], Failure | None]:
    """Take `seconds` for each request."""

    def respond(number: int, request: Request) -> None:
        time.sleep(seconds)

    return respond


class Gate(grpc.ServerInterceptor):  # type: ignore[misc]
    """Notes what came with each call, and refuses those without the peer's token if it has one."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        sent = dict(details.invocation_metadata)
        self._peer.metadata.append(sent)
        if self._peer.token and sent.get("authorization") != f"Bearer {self._peer.token}":
            return grpc.unary_unary_rpc_method_handler(_unauthenticated)
        return continuation(details)


def _unauthenticated(request: bytes, context: Any) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")


@contextmanager
def serving(
    peer: Peer, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> Iterator[Peer]:
    """Serve on loopback for the length of a `with` block; sets `peer.url`."""
    server = grpc.server(ThreadPoolExecutor(32), interceptors=[Gate(peer)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(peer, server)
    address = f"127.0.0.1:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    peer.url = f"127.0.0.1:{port}"
    server.start()
    try:
        yield peer
    finally:
        server.stop(grace=None).wait()


def made_certificates(folder: Path) -> Path:
    """Fill a folder with an authority, a certificate for 127.0.0.1 and one for a client."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name in ("server", "client"):
        openssl(
            "req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-extfile", "names", "-out", f"{name}.pem"),
        )
    return folder


@dataclass
class Mortal:
    """A peer in a process of its own; whatever ends it, it is started again.

    Attributes:
        url: its gRPC address.
        deaths: how often it ended.
        process: the one that runs now.
    """

    url: str
    journal: Path
    deaths: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def received(self, image: bytes) -> list[int]:
        """For each request that held `image`, in their order, of how many pictures it was."""
        lines = (json.loads(line) for line in self.journal.read_text().splitlines())
        return [len(line) for line in lines if image.decode() in line]

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        assert self.process is not None
        self.process.kill()


@contextmanager
def mortal(folder: Path, linger: float = 0) -> Iterator[Mortal]:
    """A peer that a picture with POISON in it kills.

    With `linger` it goes on for so many seconds as Triton does whose Python model died: it calls
    itself ready, and answers every other request that the model's process is not healthy.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    peer = Mortal(f"127.0.0.1:{port}", folder / "journal")
    peer.journal.touch()
    command = [sys.executable, __file__, str(port), str(peer.journal), str(linger)]
    up, ending = threading.Event(), threading.Event()

    def supervise() -> None:
        while not ending.is_set():
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                peer.process = process
                assert process.stdout is not None
                process.stdout.readline()
                up.set()
                process.wait()
                peer.deaths += not ending.is_set()

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    try:
        assert up.wait(60)
        yield peer
    finally:
        ending.set()
        while supervisor.is_alive():
            peer.kill()
            supervisor.join(0.1)


def _serve_until_killed(port: int, journal: Path, linger: float) -> None:
    lock = threading.Lock()
    ill = threading.Event()

    def respond(number: int, request: Request) -> Failure | None:
        with lock, journal.open("a") as file:
            file.write(
                json.dumps([image.decode(errors="replace") for image in request.images]) + "\n"
            )
        time.sleep(0.05)  # So that others are in flight when it dies.
        if any(POISON in image for image in request.images):
            ill.set()
            killer = threading.Timer(linger, os.kill, (os.getpid(), signal.SIGKILL))
            killer.start()
            if not linger:
                killer.join()
            return DEAD_STUB
        return DEAD_STUB if ill.is_set() and number % 2 else None

    with serving(Peer(respond=respond), port=port):
        print("ready", flush=True)
        threading.Event().wait()


def _refusal(request: Request) -> Failure | None:
    if len(request.images) > 1 and b"oracle" in request.images:
        return grpc.StatusCode.INVALID_ARGUMENT, "something in this request is wrong"
    for row, image in enumerate(request.images):
        if image.startswith(b"bad"):
            message = f"in ensemble 'unified_embedding', image {row}: not an image"
            return grpc.StatusCode.INVALID_ARGUMENT, message
    return None


def _answer(request: Request, stamp: str) -> Any:
    rows = len(request.images)
    text = request.parameters.get("crop", "")
    crops = text.split(";") if ";" in text else [text] * rows
    embedding = np.stack(
        [vector(image, crop) for image, crop in zip(request.images, crops, strict=True)]
    )
    version = b"".join(struct.pack("<I", len(stamp)) + stamp.encode() for _ in range(rows))
    tensors = {
        "embedding": ("FP32", [rows, DIM], embedding.tobytes()),
        "code": ("UINT8", [rows, DIM // 8], np.packbits(embedding > 0, axis=1).tobytes()),
        "version": ("BYTES", [rows, 1], version),
    }
    response = service_pb2.ModelInferResponse(model_name="unified_embedding")
    # Triton may answer in another order than asked.
    for name in sorted(request.outputs):
        datatype, shape, raw = tensors[name]
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)
    return response


def _elements(raw: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        yield raw[at + 4 : at + 4 + length]
        at += 4 + length


if __name__ == "__main__":
    _serve_until_killed(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
