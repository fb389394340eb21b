"""Target `openvino`: an intermediate representation that a Python backend runs on any CPU."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.openvino import int8
from unified_embedding.errors import SpecError
from unified_embedding.serving.openvino_engine import CORE, SLICE, OpenVinoEngine
from unified_embedding.spec import INT8_FILE, MAX_BATCH_SIZE, ONNX_FILE, EmbedderSpec

PRECISIONS: Final = ("fp32", "bf16", "int8")
_LOG: Final = logging.getLogger(__name__)
_MODEL: Final = Path(__file__).with_name("openvino_model.py")


class OpenVinoTarget:
    """Compiles for the CPU, in the precision that `best` names or the one asked for."""

    name = "openvino"
    # Measured for fp32, bf16 and int8: the CPU plugin adds in the same order in every batch.
    bit_exact_across_batches = True

    def __init__(self, precision: str, model: Path | None = None) -> None:
        """`precision` is "auto" or one of `PRECISIONS`; raises ValueError for another one.

        Args:
            precision: what int8 leaves in floating point runs in bf16 where the CPU has it.
            model: embedder folder; where it holds no `INT8_FILE`, int8 is NNCF's, calibrated on
                the gallery, and "auto" does not choose it. "auto" passes over a file that was
                made of another version.
        """
        native = has_native_bf16()
        file = model / INT8_FILE if model is not None else None
        quantised = file if file is not None and file.is_file() else None
        self._chosen: dict[str, Any] = {}
        if precision == "auto":
            features = cpu_features()
            precision = best(features, quantised is not None)
            if precision == "int8" and model is not None and not _fits(model):
                precision = best(features, quantised=False)
            self._chosen = {"chosen_for_cpu": sorted(features)}
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
        self._quantised = quantised if precision == "int8" else None
        self.calibrated = precision == "int8" and quantised is None
        self._hint = "f32" if precision == "fp32" or not native else "bf16"

    def inputs(self) -> dict[str, str]:
        """What besides the embedder and calibration pictures decides the engine's bits."""
        decisive = {"openvino": ov.__version__, "shapes": "fixed"}
        if self.precision == "int8":
            decisive["not_quantised"] = self._hint
        if self._quantised is not None:
            decisive["quantised"] = hashlib.sha256(self._quantised.read_bytes()).hexdigest()[:12]
        elif self.calibrated:
            decisive |= int8.inputs()
        return decisive

    def compile(self, model: Path, folder: Path, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """Write model.xml, model.bin and model.py into `folder`.

        Raises:
            SpecError: the quantised graph is not this embedder's.
        """
        if self._quantised is not None:
            _check_quantised(model)
            network = ov.convert_model(self._quantised)
        else:
            network = ov.convert_model(model / ONNX_FILE)
        if self.calibrated:
            network = int8.quantise(network, pixels)
        ov.save_model(network, folder / "model.xml", compress_to_fp16=False)
        shutil.copyfile(_MODEL, folder / "model.py")
        return self._chosen

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


def best(features: frozenset[str], quantised: bool) -> str:
    """The precision that "auto" means, by what the CPU has: a trial's choice would change by noise.

    bf16 where it is native, because its codes agree best. Elsewhere int8, if the embedder has a
    quantised graph: that has weights of 7 bits, so it needs no VNNI, and with AVX2 alone it costs
    half of what fp32 does (docs/engines.md). Otherwise fp32.

    Args:
        features: as `cpu_features` finds them.
        quantised: the embedder has an `INT8_FILE`.
    """
    if "bf16" in features:
        return "bf16"
    return "int8" if quantised and "avx2" in features else "fp32"


def _check_quantised(model: Path) -> None:
    """Raises SpecError when the quantised graph is not this embedder's."""
    from unified_embedding import onnx_file  # Needs onnx, as no other precision does.

    onnx_file.load_quantised(model, EmbedderSpec.load(model))


def _fits(model: Path) -> bool:
    try:
        _check_quantised(model)
    except SpecError as error:
        _LOG.warning("PRECISION=auto passes over int8: %s", error)
        return False
    return True


def cpu_features() -> frozenset[str]:
    """Of "bf16", "vnni" and "avx2", those that this CPU has."""
    flags = Path("/proc/cpuinfo").read_text().split()
    found = {"avx2"} & set(flags)
    if {"avx512_vnni", "avx_vnni"} & set(flags):
        found.add("vnni")
    return frozenset(found | ({"bf16"} if has_native_bf16() else set()))


def has_native_bf16() -> bool:
    """BF16 among the CPU's OPTIMIZATION_CAPABILITIES, as OpenVINO reports them."""
    return "BF16" in CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
