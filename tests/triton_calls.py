"""The plainest possible caller: tritonclient, and no client of ours in between."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

ALL = ("embedding", "code", "version")


def infer(
    url: str,
    model: str,
    name: str,
    rows: np.ndarray,
    outputs: Sequence[str],
    parameters: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """One call on a connection of its own."""
    kinds = {np.dtype(object): "BYTES", np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}
    tensor = grpcclient.InferInput(name, list(rows.shape), kinds[rows.dtype])
    tensor.set_data_from_numpy(rows)
    with grpcclient.InferenceServerClient(url) as client:
        result = client.infer(
            model,
            [tensor],
            outputs=[grpcclient.InferRequestedOutput(output) for output in outputs],
            parameters=parameters,
            client_timeout=60,
        )
    return {output: result.as_numpy(output) for output in outputs}


def embed(
    url: str, images: Sequence[bytes], outputs: Sequence[str] = ALL, **parameters: Any
) -> dict[str, np.ndarray]:
    """Call the ensemble with encoded pictures."""
    rows = np.array([[image] for image in images], dtype=object)
    return infer(url, "unified_embedding", "image", rows, outputs, parameters or None)


def at_once(count: int, work: Any) -> list[Any]:
    """Run work(0) ... work(count - 1) in as many threads; results or exceptions, in order."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = work(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def settled(read: Callable[[], Any], quiet_s: float = 1.0) -> Any:
    """What a counter of the server reads once it stands still: Triton counts after it answers."""
    seen, since = read(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.1)
        now = read()
        if now != seen:
            seen, since = now, time.monotonic()
    return seen
