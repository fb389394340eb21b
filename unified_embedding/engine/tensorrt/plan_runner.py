"""Runs a TensorRT plan on this machine's GPU, for gates and timings; serving is Triton's work."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified_embedding.engine.tensorrt import observers as trt_observers
from unified_embedding.errors import BuildError
from unified_embedding.spec import INPUT, OUTPUT


def load(trt: Any, plan: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The plan as a function pixels [N, S, S, 3] -> embedding [N, D].

    Raises:
        BuildError: TensorRT cannot read the plan, or polygraphy is missing.
    """
    try:
        polygraphy = import_module("polygraphy.backend.trt")
    except ImportError:
        raise BuildError(
            "running a plan needs polygraphy: pip install -c constraints.txt polygraphy"
        ) from None
    runtime = trt.Runtime(trt_observers.log(trt))
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise BuildError(f"TensorRT {trt.__version__} cannot read {plan}; the log names the reason")
    runner = polygraphy.TrtRunner(engine)
    runner.activate()

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer = runner.infer({INPUT: np.ascontiguousarray(pixels)}, check_inputs=False)
        # The runner writes the next answer into the same buffer.
        return np.array(answer[OUTPUT], dtype=np.float32)

    return run
