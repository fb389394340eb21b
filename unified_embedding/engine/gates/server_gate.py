"""The gate that CUDA graphs must pass: the staged engine, served by the real Triton.

With graphs, Triton has answered a request with the previous one's result (server issue 8550);
the plan alone cannot show that.
"""

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray

from unified_embedding.engine.gates import consistency, server_checks
from unified_embedding.serving.local_server import LocalServer, running
from unified_embedding.spec import MAX_BATCH_SIZE

STARTUP_SECONDS = 300.0
"""A plan warms up every batch size first."""


def serving(repository: Path) -> AbstractContextManager[LocalServer]:
    """A server with `repository`. Raises ServerUnavailable."""
    return running(repository, timeout=STARTUP_SECONDS)


def problems(repository: Path, pixels: NDArray[np.uint8]) -> list[str]:
    """What does not hold when the model `embedder` of `repository` is served.

    Raises:
        ServerUnavailable: Triton does not start with it.
    """
    with (
        serving(repository) as server,
        grpcclient.InferenceServerClient(server.grpc_url) as client,
    ):
        run = server_checks.embedder_runner(client)
        return consistency.problems(run, pixels, MAX_BATCH_SIZE, exact=False)
