"""The limit: decode, engine and pack in one process, with no server, no batching and no copies.

    python bench/roofline.py --engine model_repository/embedder --seconds 5

As many threads as cores, each decoding pictures and giving them, four at a time, to an engine
stream of its own, compiled for that shape alone: the arrangement that costs least CPU time of those
that were tried. Prints one JSON line for every line on its
standard input, so that a benchmark can interleave it with others.
"""

import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import psutil
import typer

from unified_embedding.codes import pack
from unified_embedding.image import load_pixels
from unified_embedding.load.served import pictures
from unified_embedding.serving.openvino_engine import CORE, SLICE, infer_requests
from unified_embedding.spec import EmbedderSpec

WARM_UP_S: Final = 0.3


def main(
    engine: Annotated[Path, typer.Option(help="an installed model_repository/embedder")],
    precision: Annotated[str, typer.Option(help="OpenVINO's inference precision")],
    seconds: Annotated[float, typer.Option(min=0.1, help="seconds of one measurement")] = 5,
) -> None:
    """Measure once for every line that comes in."""
    cores = len(os.sched_getaffinity(0))
    preprocessing = EmbedderSpec.load(engine / "1").preprocessing
    requests = infer_requests(
        CORE.read_model(engine / "1" / "model.xml"),
        SLICE,
        precision=precision,
        threads=cores,
        streams=cores,
        count=cores,
    )
    workers = [Worker(request, preprocessing) for request in requests]
    measure(workers, min(1.0, seconds))
    print("ready", flush=True)
    for _ in sys.stdin:
        measure(workers, WARM_UP_S)
        print(json.dumps(measure(workers, seconds)), flush=True)


class Worker:
    """One thread's pictures and engine stream."""

    def __init__(self, request: Any, preprocessing: Any) -> None:
        self._request, self._preprocessing = request, preprocessing
        self._pictures = itertools.cycle(pictures())
        self.done = 0

    def run(self, end: float) -> None:
        """Embed pictures until `end` (time.perf_counter)."""
        self.done = 0
        while time.perf_counter() < end:
            images = itertools.islice(self._pictures, SLICE)
            pixels = np.stack([load_pixels(image, self._preprocessing) for image in images])
            self._request.infer([pixels], share_inputs=True)
            pack(self._request.get_output_tensor(0).data)
            self.done += SLICE


def measure(workers: list[Worker], seconds: float) -> dict[str, float]:
    """Images, seconds, CPU seconds and memory of one stretch."""
    began, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=w.run, args=(began + seconds,)) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "images": sum(worker.done for worker in workers),
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "memory_mb": psutil.Process().memory_full_info().pss / 1e6,
    }


if __name__ == "__main__":
    typer.run(main)
