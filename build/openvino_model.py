"""Triton step `embedder` on OpenVINO, copied into the engine folder as model.py."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import triton_python_backend_utils as pb_utils

from unified_embedding import deadline


class TritonPythonModel:
    """pixels UINT8 [N, S, S, 3] -> embedding and features, both FP32 [N, D] with equal values."""

    def initialize(self, args: dict[str, str]) -> None:
        """Compile the network and run every batch size once: a new shape costs tens of ms."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.engine = Engine(
            folder / "model.xml",
            precision=parameters["inference_precision"],
            threads=int(parameters["threads"]),
            streams=int(parameters["streams"]),
            slice_size=int(parameters["slice"]),
            max_batch_size=config["max_batch_size"],
        )
        self.pace, self.shared_pace = deadline.Pace(), deadline.SharedPace()
        shape = config["input"][0]["dims"]
        for batch in range(1, config["max_batch_size"] + 1):
            self.engine.embed(np.zeros((batch, *map(int, shape)), dtype=np.uint8))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all waiting requests as one batch and hand each its rows; drop those too late."""
        # The batch itself, and as much again for the answers' way home.
        refusals = [_refusal(request, 2 * self.pace.seconds) for request in requests]
        rows = iter(self._rows([r for r, no in zip(requests, refusals, strict=True) if no is None]))
        return [next(rows) if refusal is None else refusal for refusal in refusals]

    def finalize(self) -> None:
        """The server stops."""
        self.shared_pace.remove()

    def _rows(self, requests: list[Any]) -> list[Any]:
        if not requests:
            return []
        began = time.monotonic()
        pixels = [
            pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests
        ]
        embedding = self.engine.embed(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
        ends = np.cumsum([len(rows) for rows in pixels])
        answers = [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("embedding", rows), pb_utils.Tensor("features", rows)]
            )
            for rows in np.split(embedding, ends[:-1])
        ]
        self.pace.add(time.monotonic() - began)
        self.shared_pace.write(self.pace.seconds)
        return answers


class Engine:
    """The compiled network: one picture uses all threads together, a batch is split.

    Threads that work on the same layers wait for each other after each of them: on two cores a
    picture of a batch costs a third more CPU time than when every stream takes pictures of its
    own, `slice_size` at a time, whose maps stay in a core's cache. Alone, a picture is answered
    soonest by all threads. The bits are the same.
    """

    def __init__(
        self,
        model: Path,
        precision: str,
        threads: int,
        streams: int,
        slice_size: int,
        max_batch_size: int,
    ) -> None:
        core = ov.Core()

        def requests(hint: str, streams: int, count: int) -> list[Any]:
            settings = {
                "INFERENCE_PRECISION_HINT": precision,
                "PERFORMANCE_HINT": hint,
                "NUM_STREAMS": str(streams),
                "INFERENCE_NUM_THREADS": str(threads),
            }
            compiled = core.compile_model(model, "CPU", settings)
            return [compiled.create_infer_request() for _ in range(count)]

        self._streams, self._slice = streams, slice_size
        self._together = requests("LATENCY", 1, 1)
        self._apart = requests("THROUGHPUT", streams, self._parts(max_batch_size))

    def embed(self, pixels: Any) -> Any:
        """uint8 [N, S, S, 3] -> float32 [N, D]."""
        count = len(pixels)
        requests = self._together if count == 1 else self._apart[: self._parts(count)]
        parts = np.array_split(pixels, len(requests))
        for request, part in zip(requests, parts, strict=True):
            request.start_async([part], share_inputs=True)
        for request in requests:
            request.wait()
        rows = [request.get_output_tensor(0).data for request in requests]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _parts(self, count: int) -> int:
        """Into how many parts to split `count` pictures: as many for each stream."""
        rounds = math.ceil(count / (self._slice * self._streams))
        return min(count, rounds * self._streams)


def _refusal(request: Any, needed: float) -> Any:
    """The answer to a request that is too late, else None."""
    text = request.parameters()
    try:
        deadline.check(json.loads(text) if text else {}, needed)
    except deadline.Late as late:
        code, message = pb_utils.TritonError.UNAVAILABLE, str(late)
    except deadline.Malformed as malformed:
        code, message = pb_utils.TritonError.INVALID_ARG, str(malformed)
    else:
        return None
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
