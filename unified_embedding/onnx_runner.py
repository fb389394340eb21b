"""An embedder's graph on onnxruntime's CPU provider (extra `build`)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unified_embedding.spec import INPUT, OUTPUT

Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels uint8 [N, S, S, 3] -> embeddings float32 [N, D]."""


def on_onnxruntime(graph: Path | bytes, threads: int = 0, *, optimised: bool = True) -> Runner:
    """A graph, as a file or its contents, on so many threads; 0: one for each core.

    Not `optimised`, it computes node by node what the graph says.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run([OUTPUT], {INPUT: pixels})[0], np.float32)
