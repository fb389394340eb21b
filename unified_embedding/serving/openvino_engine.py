"""An embedder compiled by OpenVINO for the CPU, run as the server, the gates and `evaluate` do."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray

Hint = Literal["LATENCY", "THROUGHPUT"]

CORE: Final = ov.Core()
"""The one of this process. Each Core loads a CPU plugin of its own, and each plugin replaces the
thread's signal stack (OpenVINO 2026.4.1). Released in the order they were made, the last one puts
back the stack that the first has freed; the thread's next signal is then a segmentation fault."""

SLICE: Final = 4
"""Pictures a stream takes at a time: their maps stay in a core's cache."""


class OpenVinoEngine:
    """Compiled for fixed shapes only: one picture by all threads, a batch by streams.

    A network with a free batch size costs a quarter more CPU time, and a third more when its size
    changes from call to call (Lite0 in bf16; docs/engines.md). Threads that share a picture wait
    for each other after each layer: a batch costs less when each stream takes pictures of its
    own. Alone, a picture is answered soonest by all threads. The bits are the same either way.
    """

    def __init__(
        self,
        model: Path,
        *,
        precision: str,
        threads: int,
        streams: int,
        max_batch_size: int,
        slice_size: int = SLICE,
    ) -> None:
        """Compile, and run each shape once.

        Args:
            model: model.xml with its weights beside it; input uint8 [N, S, S, 3].
            precision: OpenVINO's INFERENCE_PRECISION_HINT, "f32" or "bf16".
            threads: for all streams together.
            streams: pictures, or slices of them, that are computed at once.
            max_batch_size: pictures in one call of `embed`, at most.
            slice_size: pictures a stream takes at a time, while there are as many for each.
        """
        network = CORE.read_model(model)
        compiled = partial(infer_requests, network, precision=precision, threads=threads)
        round_size = slice_size * streams
        slices = max_batch_size // round_size * streams if slice_size > 1 else 0
        singles = min(max_batch_size, round_size - 1) if slices else max_batch_size
        self._max_batch_size = max_batch_size
        self._slice, self._round = slice_size, round_size
        self._together = compiled(1, hint="LATENCY", streams=1, count=1)[0]
        self._singles = compiled(1, streams=streams, count=singles)
        self._slices = compiled(slice_size, streams=streams, count=slices) if slices else []

    @classmethod
    def configured(
        cls, model: Path, parameters: Mapping[str, str], max_batch_size: int
    ) -> "OpenVinoEngine":
        """The engine that the parameters of the embedder's config.pbtxt describe."""
        return cls(
            model,
            precision=parameters["inference_precision"],
            threads=int(parameters["threads"]),
            streams=int(parameters["streams"]),
            max_batch_size=max_batch_size,
            slice_size=int(parameters["slice"]),
        )

    def embed(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The embeddings float32 [N, D] of N pictures uint8 [S, S, 3], N up to max_batch_size.

        Raises:
            ValueError: no picture, or too many.
        """
        if not 1 <= len(pixels) <= self._max_batch_size:
            raise ValueError(f"{len(pixels)} pictures: give 1 to {self._max_batch_size}")
        if len(pixels) == 1:
            self._together.infer([pixels[0][None]], share_inputs=True)
            return _output(self._together).copy()
        sliced = len(pixels) // self._round * self._round if self._slices else 0
        slices = [
            np.stack(pixels[start : start + self._slice]) for start in range(0, sliced, self._slice)
        ]
        inputs = [*slices, *(picture[None] for picture in pixels[sliced:])]
        requests = [*self._slices[: len(slices)], *self._singles[: len(pixels) - sliced]]
        for request, rows in zip(requests, inputs, strict=True):
            request.start_async([rows], share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([_output(request) for request in requests])

    def embed_all(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The embeddings float32 [N, D] of any number of pictures uint8 [N, S, S, 3]."""
        size = self._max_batch_size
        parts = [list(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        return np.concatenate([self.embed(part) for part in parts])


def infer_requests(
    network: Any,
    batch: int | None,
    *,
    precision: str,
    threads: int,
    streams: int,
    count: int,
    hint: Hint = "THROUGHPUT",
) -> list[Any]:
    """Compile `network` for `batch` pictures, None for any number, and run each request once.

    One after the other: two threads that make OpenVINO's first call wait for each other for ever,
    one with Python's lock and one with that of a table which the call sets up.
    """
    sides = [axis.get_length() for axis in list(network.input(0).partial_shape)[1:]]
    if batch is not None:
        network.reshape([batch, *sides])
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": hint,
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
    }
    compiled = CORE.compile_model(network, "CPU", settings)
    made = [compiled.create_infer_request() for _ in range(count)]
    for request in made:
        request.infer([np.zeros((batch or 1, *sides), np.uint8)])
    return made


def _output(request: Any) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = request.get_output_tensor(0).data
    return rows
