"""An embedder compiled by OpenVINO for the CPU, run as the server, the gates and `evaluate` do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray

Hint = Literal["LATENCY", "THROUGHPUT"]

SLICE: Final = 4
"""Pictures a stream takes at a time: their maps stay in a core's cache."""


class OpenVinoEngine:
    """Compiled for fixed shapes only: one picture by all threads, a batch by streams.

    A network with a free batch size costs a fifth more CPU time, and a third more when its size
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
        core = ov.Core()
        network = core.read_model(model)

        def requests(hint: Hint, streams: int, batch: int, count: int) -> list[Any]:
            if count == 0:
                return []
            network.reshape([batch, *_sides(network)])
            settings = {
                "INFERENCE_PRECISION_HINT": precision,
                "PERFORMANCE_HINT": hint,
                "NUM_STREAMS": str(streams),
                "INFERENCE_NUM_THREADS": str(threads),
            }
            compiled = core.compile_model(network, "CPU", settings)
            made = [compiled.create_infer_request() for _ in range(count)]
            blank = np.zeros((batch, *_sides(network)), np.uint8)
            for request in made:
                request.infer([blank])
            return made

        round_size = slice_size * streams
        slices = max_batch_size // round_size * streams if slice_size > 1 else 0
        singles = min(max_batch_size, round_size - 1) if slices else max_batch_size
        self._max_batch_size = max_batch_size
        self._slice, self._round = slice_size, round_size
        self._together = requests("LATENCY", 1, 1, 1)[0]
        self._singles = requests("THROUGHPUT", streams, 1, singles)
        self._slices = requests("THROUGHPUT", streams, slice_size, slices)

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


def _sides(network: Any) -> list[int]:
    return [axis.get_length() for axis in list(network.input(0).partial_shape)[1:]]


def _output(request: Any) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = request.get_output_tensor(0).data
    return rows
