"""What a target chooses about how Triton runs its engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from unified_embedding.spec import MAX_BATCH_SIZE


@dataclass(frozen=True)
class EmbedderConfig:
    """What a target chooses about how Triton runs its engine.

    Attributes:
        backend: "python", with the engine's model.py beside it, or "tensorrt", with model.plan.
        kind: where the instances run.
        instances: copies of the engine that run at once, on each GPU where `kind` is KIND_GPU.
        max_batch_size: pictures in one execution, at most; the ensemble takes requests of up to
            MAX_BATCH_SIZE, so never fewer.
        queue_delay_us: microseconds a request may wait for others to share its batch.
        parameters: further string parameters the engine's model.py reads.
        warm_up: run every batch size before the model counts as ready; for backends that do not
            do so themselves.
        cuda_graphs: replay recorded kernel launches, one recording for each batch size.
    """

    backend: Literal["python", "tensorrt"]
    kind: Literal["KIND_CPU", "KIND_GPU"]
    instances: int = 1
    max_batch_size: int = MAX_BATCH_SIZE
    queue_delay_us: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    warm_up: bool = False
    cuda_graphs: bool = False
