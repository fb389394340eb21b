"""A gateway in front of real servers, and the plainest possible callers of it."""

import contextlib
import http.client
import json
import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from unified_embedding.gateway import envoy, folder
from unified_embedding.serving.local_server import LocalServer, free_ports

SERVICE = "/inference.GRPCInferenceService"
MODEL = "unified_embedding"
KEYS = [("search", "s" * 40), ("ads", "a" * 40)]
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Rig:
    """A running gateway."""

    folder: Path
    port: int
    gateway: envoy.Gateway
    log: Path

    def channel(self) -> grpc.Channel:
        """A channel of its own: one connection."""
        trusted = grpc.ssl_channel_credentials((self.folder / folder.CERTIFICATE).read_bytes())
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(f"localhost:{self.port}", trusted, options)

    def http(
        self, method: str, path: str, key: str | None = None, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request; underscores in header names are hyphens."""
        trusting = ssl.create_default_context(cafile=self.folder / folder.CERTIFICATE)
        connection = http.client.HTTPSConnection(
            "localhost", self.port, timeout=60, context=trusting
        )
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            sent = named | ({"authorization": f"Bearer {key}"} if key else {})
            connection.request(method, path, body or None, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def lines(self) -> list[dict[str, Any]]:
        """The access log."""
        text = self.log.read_text().splitlines()
        return [json.loads(line) for line in text if line.startswith("{")]

    def counter(self, name: str) -> int:
        """What Envoy has counted of the servers."""
        return self.gateway.counter(f"cluster.embedder.{name}")


@contextlib.contextmanager
def gateway(
    place: Path,
    servers: Sequence[LocalServer],
    keys: Sequence[tuple[str, str]] = KEYS,
    **settings: Any,
) -> Iterator[Rig]:
    """A gateway before these servers."""
    port, admin_port = free_ports(2)
    place.mkdir(parents=True, exist_ok=True)
    folder.certify(place)
    folder.write_keys(place, keys)
    point(place, servers)
    asked = folder.Settings(port=port, admin_port=admin_port, **{"rate": 100_000, **settings})
    folder.write_configuration(place, asked)
    with envoy.running(place, admin_port, place / "log") as running:
        yield Rig(place, port, running, place / "log")


def point(
    place: Path, servers: Sequence[LocalServer], versions: Sequence[str] = ("a-version",)
) -> None:
    """Tell a gateway where the servers are; the last of `versions` is that of the others too."""
    told = [*versions, *versions[-1:] * len(servers)]
    there = [
        folder.Server.parse(f"{server.grpc_url}:{server.http_url.rpartition(':')[2]}", version)
        for server, version in zip(servers, told, strict=False)
    ]
    folder.write_servers(place, there)


def bearer(key: str) -> list[tuple[str, str]]:
    """The metadata of a call with a key."""
    return [("authorization", f"Bearer {key}")]


def pictures(images: Sequence[bytes], model: str = MODEL, **parameters: str) -> Any:
    """A request for the codes of pictures. It has an id, by which Triton's log knows it."""
    request = pb.ModelInferRequest(
        model_name=model,
        id="ours",
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name="image", datatype="BYTES", shape=[len(images), 1]
            )
        ],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="code")],
        raw_input_contents=[b"".join(LENGTH.pack(len(image)) + image for image in images)],
    )
    for name, value in parameters.items():
        request.parameters[name].string_param = value
    return request


def stub(channel: grpc.Channel) -> service_pb2_grpc.GRPCInferenceServiceStub:
    """tritonclient's own stub."""
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def refused(call: Any, *arguments: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    """Code and sentence of a call that must fail."""
    try:
        call(*arguments, timeout=60, **options)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError("the call was answered")
