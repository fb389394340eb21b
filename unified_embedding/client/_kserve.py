"""The wire contract as KServe v2 messages: requests out, typed results in.

The messages come from tritonclient. Building them directly costs a third of what
tritonclient's InferInput does for one picture, and adds no parameters of its own.
"""

import re
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unified_embedding.client._calls import MAX_MESSAGE_BYTES, Deadline
from unified_embedding.client._job import Job
from unified_embedding.client._results import (
    CODE,
    EMBEDDING,
    Embedded,
    ServerInfo,
    StageStatistics,
)
from unified_embedding.deadline import DEADLINE
from unified_embedding.errors import (
    ClientError,
    DeadlineExceeded,
    Overloaded,
    RequestRejected,
    ServerDied,
    ServerError,
    ServerUnavailable,
    shown,
)
from unified_embedding.names import Names
from unified_embedding.spec import COMPATIBLE_KEY, ENGINE_KEY, VERSION_KEY

try:
    import grpc
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc import service_pb2_grpc
except (ImportError, RuntimeError) as missing:  # tritonclient without its extra: RuntimeError.
    raise ImportError(
        f"the client needs tritonclient with gRPC ({missing}); "
        "install it with: pip install 'unified-embedding[client]'"
    ) from missing

__all__ = ["Stub", "grpc", "pb"]

IMAGE: Final = "image"
VERSION: Final = "version"
CROP: Final = "crop"

Stub = service_pb2_grpc.GRPCInferenceServiceStub

# What gRPC leaves for one picture beside the rest of the message.
MAX_IMAGE_BYTES: Final = MAX_MESSAGE_BYTES - 4096

_DTYPES: Final = {EMBEDDING: ("FP32", np.float32), CODE: ("UINT8", np.uint8)}
_ROW: Final = re.compile(r"(?:in ensemble '[^']*', )?image (\d+): (.*)", re.DOTALL)
_LENGTH: Final = struct.Struct("<I")

# What gRPC, or Envoy between us and the server, says when a connection breaks on which a request
# was sent; and not when none could be made, which repeats the same words behind its own.
_BROKEN: Final = re.compile(
    "^(?!failed to connect|connections to all backends failing).*(Stream removed|Socket closed"
    "|Connection reset|Broken pipe|reset reason: connection termination)",
    re.DOTALL,
)
# What gRPC says of a port that speaks something else; Triton's HTTP port closes the connection.
_NOT_GRPC: Final = re.compile(
    "Failed parsing HTTP/2|http1.x server"
    "|(failed to connect|connections to all backends failing).*Socket closed",
    re.DOTALL,
)
# What Triton says of a model that it has not loaded yet, or unloads before it stops.
_NOT_READY: Final = re.compile("unknown model|no available versions|not ready|not at ready state")
# What gRPC, or a gateway, says of a message over its limit.
_TOO_LARGE: Final = re.compile("larger than")
_DEAD_STUB: Final = re.compile("[Ss]tub process .*is not healthy", re.DOTALL)
# What a model's breaking process costs the step after it. Only Triton itself sends steps their
# inputs; of a caller's own mistake it does not say "in ensemble".
_LOST_STEP: Final = re.compile(r"in ensemble .* expected \d+ inputs but got \d+ inputs", re.DOTALL)
_MOST_DETAILS: Final = 1000


def infer_request(model: str, job: Job, rows: Sequence[int], deadline: Deadline | None) -> Any:
    """The ModelInferRequest for `rows` of a job, to be answered by `deadline` (time.time()).

    Raises:
        RequestRejected: one picture alone is larger than a gRPC message may be.
    """
    crops = [job.crops[row] for row in rows]
    request = pb.ModelInferRequest(
        model_name=model,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=IMAGE, datatype="BYTES", shape=[len(rows), 1]
            )
        ],
        outputs=[
            pb.ModelInferRequest.InferRequestedOutputTensor(name=name)
            for name in (*job.outputs, VERSION)
        ],
        raw_input_contents=[_bytes_tensor([job.images[row] for row in rows])],
    )
    if any(crops):
        boxes = ["" if crop is None else str(crop) for crop in crops]
        request.parameters[CROP].string_param = ";".join(boxes)
    if deadline is not None:
        request.parameters[DEADLINE].string_param = f"{deadline.moment:.3f}"
    return request


def embedded(response: Any, outputs: Sequence[str], rows: int) -> Embedded:
    """The typed answer to a request for `outputs` of `rows` pictures.

    Raises:
        ServerError: an output is missing, or has another type, shape or size than the
            contract says.
    """
    tensors = {
        tensor.name: (tensor, raw)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=False)
    }
    missing = {*outputs, VERSION} - set(tensors)
    if missing:
        raise ServerError(f"the server's answer lacks the outputs {sorted(missing)}")
    arrays = {name: _array(*tensors[name], rows) for name in outputs}
    version, engine = _version(tensors[VERSION][1])
    return Embedded(arrays.get(EMBEDDING), arrays.get(CODE), version, engine)


def server_info(names: Names, server: Any, ensemble: Any, embedder: Any) -> ServerInfo:
    """What ServerMetadata and the two ModelConfig answers say.

    Raises:
        ServerError: the models are not those of this project.
    """
    config = embedder.config
    version, engine, compatible = (
        config.parameters[key].string_value if key in config.parameters else ""
        for key in (VERSION_KEY, ENGINE_KEY, COMPATIBLE_KEY)
    )
    inputs = [list(tensor.dims) for tensor in config.input]
    outputs = {tensor.name: list(tensor.dims) for tensor in config.output}
    dims = outputs.get(EMBEDDING, [])
    if not version or not engine or len(inputs) != 1 or len(inputs[0]) != 3 or len(dims) != 1:
        raise ServerError(
            f"the server's model {names.embedder!r} is not an embedder of this project (version "
            f"{shown(version)}, engine {shown(engine)}, inputs {shown(inputs)}, outputs "
            f"{shown(outputs)}); build it with make engine"
        )
    return ServerInfo(
        version=version,
        engine=engine,
        dim=dims[0],
        input_size=inputs[0][0],
        max_batch_size=max(1, ensemble.config.max_batch_size),
        triton=server.version,
        compatible_with=tuple(compatible.split()),
    )


def statistics(response: Any) -> dict[str, StageStatistics]:
    """Running totals by model name from a ModelStatistics answer."""
    return {
        model.name: StageStatistics(
            requests=model.inference_stats.success.count,
            failures=model.inference_stats.fail.count,
            inferences=model.inference_count,
            executions=model.execution_count,
            total_ns=model.inference_stats.success.ns,
            queue_ns=model.inference_stats.queue.ns,
            input_ns=model.inference_stats.compute_input.ns,
            infer_ns=model.inference_stats.compute_infer.ns,
            output_ns=model.inference_stats.compute_output.ns,
        )
        for model in response.model_stats
    }


def client_error(error: Any, url: str, was_well: bool, advice: str) -> ClientError:
    """The library's error for a grpc.RpcError.

    Args:
        error: what gRPC raised.
        url: of the server.
        was_well: whether nothing was wrong with the server when the call was sent.
        advice: added where no connection could be made.
    """
    code, details = error.code(), (error.details() or "")[:_MOST_DETAILS]
    if stub_died(error):
        text = f"{url} lost the process of a model: {details}"
        # An ill server says so of every request that it gives to the dead process.
        return ServerDied(text, was_well) if was_well else ServerUnavailable(text)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        named = _ROW.match(details)
        if named is None:
            return RequestRejected(details)
        return RequestRejected(named[2], int(named[1]))
    if code == grpc.StatusCode.CANCELLED:
        return Overloaded(f"{url} is overloaded or was asked too late: {details}")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE.search(details):
        return RequestRejected(details)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(f"{url} takes no more calls now: {details}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{url} did not answer in time: {details}{advice}")
    if code == grpc.StatusCode.UNAVAILABLE and _BROKEN.search(details):
        return ServerDied(f"{url} was lost before it answered: {details}{advice}", was_well)
    if code == grpc.StatusCode.UNAVAILABLE and _NOT_GRPC.search(details):
        return ServerUnavailable(
            f"{url} takes connections, but does not speak gRPC: if that is the server's HTTP port, "
            f"give its gRPC port, 8001 by default ({details}){advice}"
        )
    if code == grpc.StatusCode.UNAVAILABLE:
        return ServerUnavailable(f"{url} is unavailable: {details}{advice}")
    if code == grpc.StatusCode.NOT_FOUND and _NOT_READY.search(details):
        return ServerUnavailable(f"{url} is starting, stopping or another server: {details}")
    text = f"{url} answered {code.name}: {details}"
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        text += "; give a token that it accepts (metadata=bearer(token))"
    return ServerError(text)


def stub_died(error: Any) -> bool:
    """Whether the server says that a model's process is dead; the server itself lives on."""
    details = error.details() or ""
    if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
        return _LOST_STEP.match(details) is not None
    return error.code() == grpc.StatusCode.INTERNAL and _DEAD_STUB.search(details) is not None


def _bytes_tensor(images: Sequence[bytes]) -> bytes:
    # KServe v2, raw BYTES: every element is preceded by its length, 4 bytes little-endian.
    parts = []
    for row, image in enumerate(images):
        if len(image) > MAX_IMAGE_BYTES:
            raise RequestRejected(
                f"the image has {len(image):,} bytes; a gRPC message holds {MAX_IMAGE_BYTES:,}", row
            )
        parts += [_LENGTH.pack(len(image)), image]
    return b"".join(parts)


def _array(tensor: Any, raw: bytes, rows: int) -> NDArray[Any]:
    datatype, dtype = _DTYPES[tensor.name]
    shape = list(tensor.shape)
    fits = len(shape) == 2 and shape[0] == rows and tensor.datatype == datatype
    if not fits or len(raw) != shape[0] * shape[1] * np.dtype(dtype).itemsize:
        raise ServerError(
            f"the server answered {tensor.name!r} as {tensor.datatype} {shape} in {len(raw)} "
            f"bytes; expected {datatype} [{rows}, D] (0 bytes: the server's Python has numpy 2 "
            "and its Triton is older than 24.11)"
        )
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _version(raw: bytes) -> tuple[str, str]:
    stated = set(_elements(raw))
    text = stated.pop().decode(errors="replace") if len(stated) == 1 else ""
    version, _, engine = text.partition(" ")
    if not version or not engine:
        raise ServerError(
            f"the output {VERSION!r} of the server's answer holds {shown(raw)}; expected the same "
            "'<version> <engine>' in each row"
        )
    return version, engine


def _elements(raw: bytes) -> list[bytes]:
    elements, at = [], 0
    while at + _LENGTH.size <= len(raw):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        elements.append(raw[at : at + length])
        at += length
    return elements
