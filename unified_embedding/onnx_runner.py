"""An embedder's graph on onnxruntime's CPU provider (extra `build`)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unified_embedding.spec import INPUT, OUTPUT

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels uint8 [N, S, S, 3] -> embeddings float32 [N, D]."""


def on_onnxruntime(graph: Path | bytes, threads: int = 0) -> Runner:
    """A graph, as a file or its contents, on so many threads; 0: one for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run([OUTPUT], {INPUT: pixels})[0], np.float32)
