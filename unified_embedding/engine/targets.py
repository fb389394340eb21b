"""What a compile target is, and which one TARGET and PRECISION name.

A target's module is imported when it is chosen: nobody needs the packages of the others.
"""

from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.errors import BuildError
from unified_embedding.onnx_runner import Runner

TARGETS: Final = ("auto", "openvino", "tensorrt", "tensorrt-rtx")


class Target(Protocol):
    """One way to compile an embedder.

    Attributes:
        name: as in TARGET=name.
        precision: key of `gates.TOLERANCES`.
        calibrated: the gallery's pictures decide the engine's bits too.
        bit_exact_across_batches: a picture's embedding does not depend on its batch at all.
    """

    name: str
    precision: str
    calibrated: bool
    bit_exact_across_batches: bool

    def inputs(self) -> dict[str, str]:
        """What besides the embedder and the gallery decides the engine's bits."""

    def compile(self, model: Path, folder: Path, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """Write the engine's files into `folder` (embedder/1); `pixels` are the gallery's.

        Returns what engine.json records about the build.
        """

    def runner(self, folder: Path) -> Runner:
        """The engine in `folder` as a function pixels [N, S, S, 3] -> embedding [N, D]."""


@runtime_checkable
class ServedTarget(Target, Protocol):
    """A target whose engine Triton can serve."""

    def config(self) -> EmbedderConfig:
        """How Triton runs the engine."""


def choose(
    name: str, precision: str, options: PlanOptions, cache: Path, model: Path | None = None
) -> Target:
    """The target that TARGET and PRECISION name for the embedder in folder `model`.

    `cache` is a folder for timing caches.

    Raises:
        BuildError: an unknown name, or something the target needs is missing.
        ValueError: a precision the target does not have.
    """
    if name not in TARGETS:
        raise BuildError(f"TARGET={name} is unknown; use one of {', '.join(TARGETS)}")
    if name == "auto":
        name = "tensorrt" if precision in ("auto", "fp16") and _serves_plans() else "openvino"
    if name == "openvino":
        from unified_embedding.engine.openvino.target import OpenVinoTarget

        return OpenVinoTarget(precision, model)
    if precision not in ("auto", "fp16"):
        raise BuildError(f"PRECISION={precision} is not built for {name}; its plans are fp16")
    if name == "tensorrt":
        from unified_embedding.engine.tensorrt.target import TensorRtTarget

        return TensorRtTarget(options, cache)
    from unified_embedding.engine.tensorrt.rtx_target import TensorRtRtxTarget

    return TensorRtRtxTarget(options)


def _serves_plans() -> bool:
    from unified_embedding.engine.tensorrt.target import available

    return available()
