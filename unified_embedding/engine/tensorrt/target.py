"""Target `tensorrt`: an FP16 plan for Triton's TensorRT backend, built on the serving GPU."""

import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.tensorrt import gpu, plan_runner
from unified_embedding.engine.tensorrt import library as tensorrt_library
from unified_embedding.engine.tensorrt import plan as tensorrt_plan
from unified_embedding.engine.tensorrt.plan import PLAN_FILE, console
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.errors import BuildError
from unified_embedding.onnx_runner import Runner


class TensorRtTarget:
    """Compiles an FP16 plan on this machine's GPU."""

    name = "tensorrt"
    precision = "fp16"
    calibrated = False
    # Another batch size may run another kernel, which adds in another order.
    bit_exact_across_batches = False

    def __init__(self, options: PlanOptions, cache: Path) -> None:
        """Look for what the build needs; `cache` is a folder for timing caches.

        Raises:
            BuildError: no GPU, no package, or a package of another version than Triton's.
        """
        self.options = options
        self.trt, self.gpu = _requirements()
        if options.compute_capabilities:
            raise BuildError(
                "COMPUTE_CAPABILITIES is for TARGET=tensorrt-rtx; a plan is built for the GPU "
                "it is built on"
            )
        self.version = tensorrt_library.builder_version(self.trt)
        library = tensorrt_library.triton_library()
        if library is None:
            console.print(f"no Triton here: the plan will load in TensorRT {self.version} only")
        else:
            triton = tensorrt_library.library_version(library)
            tensorrt_library.check_agreement(self.version, triton, options.version_compatible)
        device = re.sub(r"[^a-z0-9]+", "-", self.gpu.name.lower())
        self.timing_cache = cache / f"timing-{device}-{self.gpu.cuda}-{self.version}.cache"

    def inputs(self) -> dict[str, str]:
        """What besides the embedder decides the engine's bits, kernel timing apart."""
        return {
            "tensorrt": self.version,
            "gpu": self.gpu.name,
            "compute_capability": self.gpu.capability,
            "options": str(asdict(self.options)),
        }

    def compile(self, model: Path, folder: Path, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """Write model.plan into `folder`; returns what engine.json records about the build."""
        graph = tensorrt_plan.half_graph(model)
        record = tensorrt_plan.check_range(graph, pixels)
        options = tensorrt_plan.builder_options(self.options, self.timing_cache)
        if self.options.frontend == "torch-tensorrt":
            from unified_embedding.engine.tensorrt import torch_frontend

            plan, built = torch_frontend.compile_plan(graph.model, options)
        else:
            serialised = graph.model.SerializeToString()
            plan, built = tensorrt_plan.compile_plan(self.trt, serialised, options)
        (folder / PLAN_FILE).write_bytes(plan)
        return {**record, **built, "gpu": asdict(self.gpu)}

    def config(self) -> EmbedderConfig:
        """Triton's TensorRT backend; two instances overlap one's copies with the other's work."""
        return EmbedderConfig(
            backend="tensorrt",
            kind="KIND_GPU",
            instances=2,
            warm_up=True,
            cuda_graphs=self.options.cuda_graphs,
        )

    def runner(self, folder: Path) -> Runner:
        """The plan in `folder` as a function pixels [N, S, S, 3] -> embedding [N, D]."""
        return plan_runner.load(self.trt, folder / PLAN_FILE)


def available() -> bool:
    """True where `TARGET=auto` should build a plan: GPU, package, and a Triton that serves it."""
    return bool(gpu.find()) and tensorrt_library.triton_has_tensorrt() and _package() is not None


def _package() -> Any:
    try:
        return import_module("tensorrt")
    except ImportError:
        return None


def _requirements() -> tuple[Any, gpu.Gpu]:
    trt, gpus = _package(), gpu.find()
    missing = [
        *([] if gpus else ["an NVIDIA GPU with its driver"]),
        *([] if trt is not None else ["the Python package tensorrt in Triton's version"]),
    ]
    if missing:
        raise BuildError(
            f"TARGET=tensorrt needs {' and '.join(missing)}, not found here: use TARGET=openvino "
            "to serve from this CPU, TARGET=tensorrt-rtx to compile the FP16 graph without a GPU, "
            "or docs/gpu-runbook.md on a GPU machine"
        )
    return trt, gpus[0]
