"""What a user may choose about a TensorRT plan."""

from dataclasses import dataclass
from typing import Final

DEFAULT_OPTIMUM_BATCH: Final = 8
DEFAULT_OPTIMIZATION_LEVEL: Final = 3
FRONTENDS: Final = ("onnx", "torch-tensorrt")


@dataclass(frozen=True)
class PlanOptions:
    """Options of the two TensorRT targets.

    Attributes:
        frontend: one of `FRONTENDS`; who translates the FP16 graph into TensorRT's network.
        optimum_batch: the batch size that kernels are chosen for.
        optimization_level: 0 to 5; 4 and 5 search longer for faster kernels.
        version_compatible: the plan also loads in later TensorRT versions, maybe slower.
        compute_capabilities: tensorrt-rtx only, for instance ("8.6", "8.9").
        cuda_graphs: Triton replays recorded kernel launches; tensorrt only.
    """

    frontend: str = "onnx"
    optimum_batch: int = DEFAULT_OPTIMUM_BATCH
    optimization_level: int = DEFAULT_OPTIMIZATION_LEVEL
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.frontend not in FRONTENDS:
            raise ValueError(f"FRONTEND={self.frontend} is unknown; use {' or '.join(FRONTENDS)}")
        if not 0 <= self.optimization_level <= 5:
            raise ValueError(f"optimisation level {self.optimization_level} is not in 0..5")
