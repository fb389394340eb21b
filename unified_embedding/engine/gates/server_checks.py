"""A running server as an engine to check, and under a closed load to time."""

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as grpcclient
from numpy.typing import NDArray

from unified_embedding.client import EmbedderClient
from unified_embedding.errors import ClientError
from unified_embedding.names import DEFAULT
from unified_embedding.onnx_runner import Runner
from unified_embedding.spec import INPUT, OUTPUT


def embedder_runner(client: grpcclient.InferenceServerClient) -> Runner:
    """The server's step `embedder`, asked directly: pixels [N, S, S, 3] -> embedding [N, D]."""

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        tensor = grpcclient.InferInput(INPUT, list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(np.ascontiguousarray(pixels))
        wanted = [grpcclient.InferRequestedOutput(OUTPUT)]
        answer = client.infer(DEFAULT.embedder, [tensor], outputs=wanted, client_timeout=60)
        return np.asarray(answer.as_numpy(OUTPUT), dtype=np.float32)

    return run


@dataclass(frozen=True)
class Load:
    """What a server did under a closed load.

    Attributes:
        concurrency: requests in flight at any time.
        rows: pictures in each request.
        images_per_second: answered pictures.
        p50_ms, p99_ms: latency of a request.
        mean_batch: pictures per executed batch of the embedder.
        failures: requests that failed.
    """

    concurrency: int
    rows: int
    images_per_second: float
    p50_ms: float
    p99_ms: float
    mean_batch: float
    failures: int


def closed_load(
    url: str, images: Sequence[bytes], concurrency: int, seconds: float, rows: int = 1
) -> Load:
    """Keep `concurrency` requests of `rows` encoded pictures in flight for `seconds`.

    Each caller sends its next request when the last was answered, so this measures capacity,
    not the latency of visitors who do not wait for one another.
    """
    requests = [[images[(i + j) % len(images)] for j in range(rows)] for i in range(len(images))]
    times: list[list[float]] = [[] for _ in range(concurrency)]
    failures = [0] * concurrency
    with EmbedderClient(url, max_inflight=concurrency) as client:
        client.embed(requests[0])
        before = client.statistics()[client.names.embedder]
        stop = time.monotonic() + seconds

        def call(caller: int) -> None:
            turn = caller
            while time.monotonic() < stop:
                started = time.perf_counter()
                try:
                    client.embed(requests[turn % len(requests)])
                except ClientError:
                    failures[caller] += 1
                else:
                    times[caller].append(1000 * (time.perf_counter() - started))
                turn += concurrency

        started = time.monotonic()
        callers = [threading.Thread(target=call, args=(number,)) for number in range(concurrency)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        took = time.monotonic() - started
        stage = client.statistics()[client.names.embedder] - before
    answered = sorted(value for values in times for value in values)
    return Load(
        concurrency,
        rows,
        rows * len(answered) / took,
        statistics.median(answered) if answered else float("nan"),
        float(np.percentile(answered, 99)) if answered else float("nan"),
        stage.mean_batch,
        sum(failures),
    )
