"""Target `tensorrt-rtx`: compiles the FP16 graph ahead of time, without a GPU.

Triton cannot serve an RTX plan, so nothing is installed. The plan proves that the graph parses
and compiles with the types it should have; the gates run on an emulation of its rounding.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified_embedding.engine.tensorrt import fp16_emulation
from unified_embedding.engine.tensorrt import plan as tensorrt_plan
from unified_embedding.engine.tensorrt.plan import PLAN_FILE
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.errors import BuildError
from unified_embedding.onnx_runner import Runner, on_onnxruntime


class TensorRtRtxTarget:
    """Compiles an FP16 plan for RTX GPUs on any machine."""

    name = "tensorrt-rtx"
    precision = "fp16"
    calibrated = False
    bit_exact_across_batches = True

    def __init__(self, options: PlanOptions) -> None:
        """Raises BuildError where the package is missing or an option does not apply."""
        if options.frontend != "onnx":
            raise BuildError(
                f"FRONTEND={options.frontend} needs TARGET=tensorrt and a GPU; tensorrt-rtx "
                "takes the ONNX graph"
            )
        if options.version_compatible:
            raise BuildError("TensorRT-RTX has no version-compatible plans")
        try:
            self.trt = import_module("tensorrt_rtx")
        except ImportError:
            raise BuildError(
                "TARGET=tensorrt-rtx needs the Python package tensorrt_rtx: "
                "pip install -c constraints.txt tensorrt_rtx"
            ) from None
        self.options = options
        self.emulated: bytes = b""

    def inputs(self) -> dict[str, str]:
        """What besides the embedder decides the plan."""
        return {"tensorrt_rtx": str(self.trt.__version__)}

    def compile(self, model: Path, folder: Path, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """Write model.plan into `folder`; returns what engine.json records about the build."""
        graph = tensorrt_plan.half_graph(model)
        record = tensorrt_plan.check_range(graph, pixels)
        serialised = graph.model.SerializeToString()
        options = tensorrt_plan.builder_options(self.options, timing_cache=None)
        plan, built = tensorrt_plan.compile_plan(self.trt, serialised, options)
        (folder / PLAN_FILE).write_bytes(plan)
        self.emulated = fp16_emulation.emulate(graph).SerializeToString()
        return {**record, **built, "gates_run_on": "FP16 rounding emulated on onnxruntime"}

    def runner(self, folder: Path) -> Runner:
        """The FP16 graph just compiled, emulated on the CPU."""
        return on_onnxruntime(self.emulated)
