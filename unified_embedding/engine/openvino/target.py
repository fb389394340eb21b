"""Target `openvino`: an intermediate representation that a Python backend runs on any CPU."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from unified_embedding.engine.openvino import int8
from unified_embedding.engine.triton_config import EmbedderConfig
from unified_embedding.serving.openvino_engine import CORE, SLICE, OpenVinoEngine
from unified_embedding.spec import MAX_BATCH_SIZE, ONNX_FILE

PRECISIONS: Final = ("fp32", "bf16", "int8")
_MODEL: Final = Path(__file__).with_name("openvino_model.py")


class OpenVinoTarget:
    """Compiles for the CPU: bf16 where the processor has it natively, else fp32."""

    name = "openvino"
    # Measured for fp32, bf16 and int8: the CPU plugin adds in the same order in every batch.
    bit_exact_across_batches = True

    def __init__(self, precision: str) -> None:
        """`precision` is "auto" or one of `PRECISIONS`; raises ValueError for another one.

        What int8 leaves in floating point runs in bf16 where the CPU has it natively.
        """
        native = has_native_bf16()
        if precision == "auto":
            precision = "bf16" if native else "fp32"
        if precision not in PRECISIONS:
            raise ValueError(
                f"PRECISION={precision} is not built for openvino; "
                f"use auto, {', '.join(PRECISIONS)}"
            )
        if precision == "bf16" and not native:
            raise ValueError(
                "PRECISION=bf16: this CPU has no native bf16 (emulated, it is slower than fp32); "
                "use PRECISION=fp32"
            )
        self.precision = precision
        self.calibrated = precision == "int8"
        self._hint = "f32" if precision == "fp32" or not native else "bf16"

    def inputs(self) -> dict[str, str]:
        """What besides the embedder and calibration pictures decides the engine's bits."""
        decisive = {"openvino": ov.__version__, "shapes": "fixed"}
        if self.calibrated:
            decisive |= {"not_quantised": self._hint, **int8.inputs()}
        return decisive

    def compile(self, model: Path, folder: Path, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """Write model.xml, model.bin and model.py into `folder`."""
        network = ov.convert_model(model / ONNX_FILE)
        if self.calibrated:
            network = int8.quantise(network, pixels)
        ov.save_model(network, folder / "model.xml", compress_to_fp16=False)
        shutil.copyfile(_MODEL, folder / "model.py")
        return {}

    def config(self) -> EmbedderConfig:
        """One instance that uses every core, together for one picture, by stream for a batch."""
        cores = len(os.sched_getaffinity(0))
        return EmbedderConfig(
            backend="python",
            kind="KIND_CPU",
            parameters={
                "inference_precision": self._hint,
                "threads": str(cores),
                "streams": str(cores),
                "slice": str(SLICE),
            },
        )

    def runner(self, folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """The compiled engine in `folder` as a function pixels [N, S, S, 3] -> embedding [N, D]."""
        parameters = self.config().parameters
        return OpenVinoEngine.configured(folder / "model.xml", parameters, MAX_BATCH_SIZE).embed_all


def has_native_bf16() -> bool:
    """BF16 among the CPU's OPTIMIZATION_CAPABILITIES, as OpenVINO reports them."""
    return "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
