"""From an embedder's fp32 ONNX to a plan, with the checks that make FP16 a fact."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from unified_embedding.engine.tensorrt import builder as trt_builder
from unified_embedding.engine.tensorrt import fp16_emulation, fp16_graph
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.spec import MAX_BATCH_SIZE, ONNX_FILE

PLAN_FILE: Final = "model.plan"
PEAK_PICTURES: Final = 16
_SHOWN: Final = 10

console = Console()


def builder_options(options: PlanOptions, timing_cache: Path | None) -> trt_builder.Options:
    """A user's options for the builder: one profile, from a single picture to the largest batch.

    Raises:
        ValueError: the optimum batch lies outside.
    """
    return trt_builder.Options(
        profile=trt_builder.Profile(1, options.optimum_batch, MAX_BATCH_SIZE),
        optimization_level=options.optimization_level,
        timing_cache=timing_cache,
        version_compatible=options.version_compatible,
        compute_capabilities=options.compute_capabilities,
    )


def half_graph(model: Path) -> fp16_graph.Fp16Graph:
    """The FP16 graph of an embedder folder. Raises Fp16Error."""
    return fp16_graph.convert(onnx.load(model / ONNX_FILE))


def check_range(graph: fp16_graph.Fp16Graph, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Hold the trunk's values on real pictures against FP16's range; returns what to record.

    Raises:
        Fp16Error: a node comes too close to overflow; it is named.
    """
    chosen = pixels[:: max(1, len(pixels) // PEAK_PICTURES)][:PEAK_PICTURES]
    node, peak = fp16_emulation.check_peaks(fp16_emulation.peaks(graph, chosen))
    return {
        "largest_value": {"node": node, "value": peak},
        "share_of_weights_lost_to_zero": {lost.node: lost.share for lost in graph.underflows},
    }


def compile_plan(
    trt: Any, graph: bytes, options: trt_builder.Options
) -> tuple[bytes, dict[str, Any]]:
    """Parse, assert every convolution FP16 and every normalisation FP32, build.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        graph: serialised FP16 ONNX.
        options: how to build.

    Returns:
        The plan, and what engine.json records about it.

    Raises:
        TrtError: TensorRT refused, or a type is not the one expected; nodes are named.
    """
    network = trt_builder.parse(trt, graph)
    types = trt_builder.read_types(trt, network)
    console.print(f"{types} (read from the network that {trt.__name__} {trt.__version__} parsed)")
    check_types(types)
    plan, seconds = trt_builder.build(trt, network, options, console)
    console.print(f"built {len(plan) / 1e6:.1f} MB in {seconds:.1f} s")
    return plan, {
        trt.__name__: str(trt.__version__),
        "profile": asdict(options.profile),
        "optimization_level": options.optimization_level,
        "version_compatible": options.version_compatible,
        "compute_capabilities": list(options.compute_capabilities) or "default",
        "types": types.by_kind,
        "convolutions_fp16": f"{types.half_convolutions} of {types.convolutions}",
        "build_seconds": round(seconds, 1),
    }


def check_types(types: trt_builder.NetworkTypes) -> None:
    """Raise TrtError, naming the layers, unless every type is the one an FP16 engine has."""
    if not types.convolutions:
        raise trt_builder.TrtError("the parsed network has no convolution")
    if types.problems:
        more = len(types.problems) - _SHOWN
        shown = [*types.problems[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise trt_builder.TrtError("\n  ".join(["the network is not the FP16 one:", *shown]))
