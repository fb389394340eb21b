"""Requests to a running server, good and malformed, sent as bytes that can be sent again."""

import io
import json
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from unified_embedding.fuzzing import mutation
from unified_embedding.fuzzing.cases import CROPS, MOMENTS, Case, pictures
from unified_embedding.names import DEFAULT

MODEL: Final = DEFAULT.ensemble
METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
# A call to a server that works ends long before; one that does not end is a breach.
_CALL_S: Final = 120.0
_OUTPUTS: Final = ("embedding", "code", "version")
# What a malformed request may be answered with. Late or too much work is CANCELLED; what does
# not fit gRPC's own message limits is its RESOURCE_EXHAUSTED.
ALLOWED: Final = ("OK", "INVALID_ARGUMENT", "CANCELLED", "RESOURCE_EXHAUSTED")
_LONGEST_MESSAGE: Final = 600
# Triton 2.51's HTTP front end answers bodies that it cannot parse with 500, before any model.
_TRITONS_OWN: Final = (
    '{"error":"failed to parse the request JSON buffer',
    '{"error":"Unable to parse',
)


@dataclass(frozen=True)
class Answer:
    """What came back: a gRPC status's name or "HTTP <status>", its message, and the tensors."""

    status: str
    message: str
    tensors: dict[str, bytes]


def request(images: Sequence[bytes], crop: str = "", deadline_s: float = 0) -> Any:
    """A well-formed ModelInfer message."""
    message = service_pb2.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="image", datatype="BYTES", shape=[len(images), 1])
    message.raw_input_contents.append(_elements(images))
    for name in _OUTPUTS:
        message.outputs.add(name=name)
    if crop:
        message.parameters["crop"].string_param = crop
    if deadline_s:
        message.parameters["deadline"].string_param = f"{time.time() + deadline_s:.3f}"
    return message


class Caller:
    """One gRPC connection that sends messages as bytes."""

    def __init__(self, url: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        # Otherwise channels of equal options share one connection.
        options.append(("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.insecure_channel(url, options=options)
        self._call = self._channel.unary_unary(METHOD)

    def send(self, message: bytes) -> Answer:
        """Send a serialised ModelInferRequest."""
        try:
            raw = self._call(message, timeout=_CALL_S)
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details() or "", {})
        response = service_pb2.ModelInferResponse.FromString(raw)
        names = (output.name for output in response.outputs)
        return Answer("OK", "", dict(zip(names, response.raw_output_contents, strict=False)))

    def ready(self) -> bool:
        """True when the server says that the model can be called."""
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            answer = stub.ModelReady(service_pb2.ModelReadyRequest(name=MODEL), timeout=_CALL_S)
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def send(case: Case, caller: Caller, http: tuple[str, int]) -> Answer:
    """Send a malformed request by the transport that it was made for."""
    if case.parameters["transport"] == "grpc":
        return caller.send(case.data)
    return _raw(case.data, http, case.parameters.get("hold_s", 0))


def problem(answer: Answer) -> str:
    """What is wrong with the answer to a malformed request; empty when nothing is."""
    status, message = answer.status, answer.message
    if status == "HTTP 500" and any(message.startswith(words) for words in _TRITONS_OWN):
        return ""
    if status.startswith("HTTP "):
        # 503: too late or too much work.
        if status.removeprefix("HTTP ") not in ("closed", "200", "400", "404", "499", "503"):
            return f"answered {status}"
    elif status not in ALLOWED:
        return f"answered {status}"
    if "Traceback" in message or ".py" in message or "/site-packages" in message:
        return f"{status} with a traceback or a path"
    if len(message) > _LONGEST_MESSAGE:
        return f"{status} with a message of more than {_LONGEST_MESSAGE} characters"
    if status == "OK" and not _sound(answer.tensors):
        return "an answer that is no embedding"
    return ""


def malformed(random: Random) -> Case:
    """A malformed request; `pictures` in its parameters says how many malformed pictures it has."""
    kind = random.random()
    if kind < 0.75:
        return _pictures(random)
    if kind < 0.85:
        return _tensors(random)
    if kind < 0.95:
        return _http(random)
    if kind < 0.995:
        return _connection(random)
    return _costly(random)


def _pictures(random: Random) -> Case:
    count = random.choice((1, 1, 1, 2, 4, 16))
    seeds = pictures()
    bad = [mutation.picture(seeds, random) for _ in range(count)]
    message = request(bad)
    if random.random() < 0.1:
        text = mutation.text(CROPS, random).encode("utf-8", "replace").decode()
        message.parameters["crop"].string_param = text
    if random.random() < 0.1:
        message.parameters["deadline"].string_param = mutation.text(MOMENTS, random)
    return Case(message.SerializeToString(), {"transport": "grpc", "pictures": count})


def _tensors(random: Random) -> Case:
    """Lies about shapes, types and lengths."""
    count = random.choice((1, 2, 16))
    message = request([random.choice(pictures()) for _ in range(count)])
    tensor, raw = message.inputs[0], message.raw_input_contents[0]
    lie = random.randrange(9)
    if lie == 0:
        at = random.choice((0, 0, len(raw) // 2))
        message.raw_input_contents[0] = mutation.put(raw, at, mutation.number(random))
    elif lie == 1:
        odd: tuple[list[int], ...] = (
            [1 << 62, 1],
            [0, 1],
            [count],
            [count, 2],
            [1, count],
            [],
            [-1, 1],
            [17, 1],
        )
        del tensor.shape[:]
        tensor.shape.extend(random.choice(odd))
    elif lie == 2:
        tensor.datatype = random.choice(("UINT8", "FP32", "", "STRING", "BYTES "))
    elif lie == 3:
        del message.raw_input_contents[:]
    elif lie == 4:
        message.raw_input_contents[0] = raw[: random.randrange(len(raw))]
    elif lie == 5:
        message.raw_input_contents.append(raw)
    elif lie == 6:
        message.parameters["crop"].int64_param = random.choice((0, -1, 1 << 62))
    elif lie == 7:
        message.parameters["deadline"].bool_param = True
    else:
        message.outputs.add(name=random.choice(("features", "", "é" * 500)))
    return Case(message.SerializeToString(), {"transport": "grpc", "pictures": 0})


def _http(random: Random) -> Case:
    """Triton's binary HTTP, with parameters that are no text and lengths that are no lengths."""
    raw = _elements([mutation.picture(pictures(), random)])
    shape = random.choice(([1, 1], [1, 1], [1 << 62, 1], [2, 1], [1]))
    header = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": shape,
                    "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"crop": "0,0,1,1"},
    }  # fmt: skip
    text = json.dumps(header).encode()
    lie = random.randrange(5)
    if lie == 0:
        text = text.replace(b"0,0,1,1", random.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\\u0000")))
    elif lie == 1:
        text = mutation.damaged(text, [text], random)
    elif lie == 2:
        odd = random.choice((b"1e999", b"[" * 3000, b"null", b"{}", b"-1"))
        text = text.replace(b'"0,0,1,1"', odd)
    length = len(text) + (random.choice((-1, 1, 1 << 40)) if lie == 3 else 0)
    body = text + raw
    head = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Case(head.encode() + body, {"transport": "http", "pictures": 1})


def _connection(random: Random) -> Case:
    """A connection that stops in the middle, or never says anything that is a request."""
    whole = _http(random).data
    data = random.choice((b"", whole[: random.randrange(len(whole))], random.randbytes(300),
                          b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.randbytes(90)))  # fmt: skip
    hold = random.choice((0, 0.2, 2.0))
    return Case(data, {"transport": "http", "pictures": 0, "hold_s": hold})


def _costly(random: Random) -> Case:
    """Small files of many pixels, in one request: 131 kB, 784 million pixels at the most."""
    side = random.choice((2000, 7000))
    packed = io.BytesIO()
    Image.new("1", (side, side)).save(packed, "PNG")
    message = request([packed.getvalue()] * random.choice((1, 16)))
    return Case(message.SerializeToString(), {"transport": "grpc", "pictures": 0, "costly": True})


def _raw(data: bytes, address: tuple[str, int], hold_s: float) -> Answer:
    try:
        with socket.create_connection(address, timeout=_CALL_S) as connection:
            connection.sendall(data)
            if hold_s:
                time.sleep(hold_s)
            connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionRefusedError:
        return Answer("HTTP refused", "the port is closed", {})
    except TimeoutError:
        return Answer("HTTP no answer", "", {})
    except OSError:
        return Answer("HTTP closed", "", {})
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b" ")[1].decode() if head.count(b" ") else "closed"
    message = "" if status == "200" else body.decode(errors="replace")
    return Answer(f"HTTP {status}", message, {})


def _sound(tensors: dict[str, bytes]) -> bool:
    """Every embedding finite, and its code the signs of it."""
    if "embedding" not in tensors or "code" not in tensors:
        return False
    embedding: NDArray[np.float32] = np.frombuffer(tensors["embedding"], np.float32)
    code = np.frombuffer(tensors["code"], np.uint8)
    return bool(np.isfinite(embedding).all() and np.array_equal(np.packbits(embedding > 0), code))


def _elements(images: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(image)) + image for image in images)
