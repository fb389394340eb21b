"""What a network with a free batch size costs beside one compiled for a fixed shape.

    python bench/engine_shapes.py

One thread for each core gives pictures to a stream of its own, in turns for each arrangement, in
one process. Prints CPU-ms a picture.
"""

import json
import os
import threading
import time
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.load.served import REPOSITORY, console, inference_precision
from unified_embedding.measure.provenance import commit, machine
from unified_embedding.serving.openvino_engine import CORE, infer_requests
from unified_embedding.spec import EmbedderSpec


def main(
    engine: Annotated[Path, typer.Option(help="an installed OpenVINO engine")] = (
        REPOSITORY / "embedder"
    ),
    seconds: Annotated[float, typer.Option(min=0.1, help="seconds of one measurement")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="measurements of each arrangement")] = 5,
) -> None:
    """Measure and print."""
    side = EmbedderSpec.load(engine / "1").preprocessing.size
    free = requests(engine, None)
    arrangements = {
        "fixed, 4 pictures": (requests(engine, 4), (4,)),
        "fixed, 1 picture": (requests(engine, 1), (1,)),
        "free, 4 pictures": (free, (4,)),
        "free, 4 and 3 in turn": (free, (4, 3)),
    }
    costs: dict[str, list[float]] = {name: [] for name in arrangements}
    for made, sizes in arrangements.values():
        cost(made, sizes, side, min(0.5, seconds))
    for _ in range(rounds):
        for name, (made, sizes) in arrangements.items():
            costs[name].append(cost(made, sizes, side, seconds))
    best = median(costs["fixed, 4 pictures"])
    table = Table("batch size", "CPU-ms a picture", "ratio")
    for name, seen in costs.items():
        table.add_row(name, f"{median(seen):.2f}", f"{median(seen) / best:.2f}")
    console.print(table)
    stated = json.loads((engine / "1" / "engine.json").read_text())["engine"]
    found = machine()
    what = f"{stated}, commit {commit(ROOT)}, {found['cpu']}, {found['cores']} cores"
    console.print(what, soft_wrap=True, highlight=False)


def requests(engine: Path, batch: int | None) -> list[Any]:
    """An inference request for each core, of a network for `batch` pictures or for any number."""
    cores = len(os.sched_getaffinity(0))
    return infer_requests(
        CORE.read_model(engine / "1" / "model.xml"),
        batch,
        precision=inference_precision(engine),
        threads=cores,
        streams=cores,
        count=cores,
    )


def cost(made: list[Any], sizes: tuple[int, ...], side: int, seconds: float) -> float:
    """CPU-ms a picture of batches of `sizes` in turn."""
    blank = {size: np.zeros((size, side, side, 3), np.uint8) for size in sizes}
    done = [0] * len(made)
    began, end = time.process_time(), time.perf_counter() + seconds

    def run(number: int) -> None:
        for size in cycle(sizes):
            if time.perf_counter() >= end:
                return
            made[number].infer([blank[size]], share_inputs=True)
            done[number] += size

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(made))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1000 * (time.process_time() - began) / sum(done)


if __name__ == "__main__":
    typer.run(main)
