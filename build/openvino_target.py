"""Target `openvino`: an intermediate representation that a Python backend runs on any CPU."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from triton_config import EmbedderConfig

from unified_embedding.spec import ONNX_FILE

_HINTS: Final = {"bf16": "bf16", "fp32": "f32"}
_MODEL: Final = Path(__file__).with_name("openvino_model.py")


class OpenVinoTarget:
    """Compiles for the CPU: bf16 where the processor has it natively, else fp32."""

    name = "openvino"

    def __init__(self, precision: str) -> None:
        """`precision` is "auto", "bf16" or "fp32"; raises ValueError for another one."""
        native = has_native_bf16()
        if precision == "auto":
            precision = "bf16" if native else "fp32"
        if precision not in _HINTS:
            raise ValueError(
                f"PRECISION={precision} is not built for openvino; use auto, {', '.join(_HINTS)}"
            )
        if precision == "bf16" and not native:
            raise ValueError(
                "PRECISION=bf16: this CPU has no native bf16 (emulated, it is slower than fp32); "
                "use PRECISION=fp32"
            )
        self.precision = precision

    def inputs(self) -> dict[str, str]:
        """What besides the embedder decides the engine's bits."""
        return {"openvino": ov.__version__}

    def compile(self, model: Path, folder: Path) -> None:
        """Write model.xml, model.bin and model.py into `folder`."""
        network = ov.convert_model(model / ONNX_FILE)
        ov.save_model(network, folder / "model.xml", compress_to_fp16=False)
        shutil.copyfile(_MODEL, folder / "model.py")

    def config(self) -> EmbedderConfig:
        """One instance that uses every core: latency of one image, and whole batches."""
        return EmbedderConfig(
            header='backend: "python"',
            kind="KIND_CPU",
            parameters={
                "inference_precision": _HINTS[self.precision],
                "threads": str(len(os.sched_getaffinity(0))),
            },
        )

    def runner(self, folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """The compiled engine in `folder` as a function pixels [N, S, S, 3] -> embedding [N, D]."""
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = ov.Core().compile_model(folder / "model.xml", "CPU", settings)
        infer = request.create_infer_request()

        def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            infer.infer([pixels], share_inputs=True)
            return np.array(infer.get_output_tensor(0).data, dtype=np.float32)

        return run


def has_native_bf16() -> bool:
    """BF16 among the CPU's OPTIMIZATION_CAPABILITIES, as OpenVINO reports them."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
