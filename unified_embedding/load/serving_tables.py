"""Ratios and tables of `make bench`, from bench.json's values."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from unified_embedding.load.targets import SERVING
from unified_embedding.measure.questions import Question, ratio_table

CONCURRENCY: Final = (1, 8, 32)
OURS: Final = "our server"
LITSERVE: Final = ("LitServe, 1 worker", "LitServe, 2 workers")
TORCH: Final = "FastAPI + torch fp32"
ROOFLINE: Final = "roofline"


def key(system: str, users: int, per_request: int) -> str:
    """Name of a closed loop's cell."""
    return f"{system} | {users} callers | {per_request} a request"


def poisson_key(system: str) -> str:
    """Name of the cell that holds a system's highest Poisson rate."""
    return f"{system} | Poisson"


def questions(embedder: str) -> list[Question]:
    """What is asked of an embedder, but for Poisson arrivals."""
    targets, most = SERVING[embedder], CONCURRENCY[-1]
    ours, limit = key(OURS, most, 1), (key(ROOFLINE, 0, 1),)
    lit = {users: tuple(key(name, users, 1) for name in LITSERVE) for users in (1, most)}
    one = key(OURS, 1, 1)
    return [
        Question(
            f"server CPU-ms / roofline, {most} callers", "cpu_ms", ours, limit, targets.cpu_32
        ),
        Question(
            "the same, 16 images a request", "cpu_ms", key(OURS, 8, 16), limit, targets.cpu_16
        ),
        Question("the same, 1 caller", "cpu_ms", one, limit, targets.cpu_1),
        Question(
            f"images/s / LitServe at its best, {most} callers",
            "images_per_s",
            ours,
            lit[most],
            targets.litserve_rate,
        ),
        Question(
            "p50 of one caller / LitServe at its best", "p50_ms", one, lit[1], targets.litserve_p50
        ),
        Question(
            f"images/s / {TORCH}, {most} callers",
            "images_per_s",
            ours,
            (key(TORCH, most, 1),),
            targets.torch_rate,
        ),
    ]


def poisson_question(embedder: str, slo_p99_ms: float, theirs: str) -> Question:
    """The highest Poisson rate beside that of the system `theirs`."""
    return Question(
        f"highest Poisson rate at p99 <= {slo_p99_ms:g} ms / {theirs}",
        "per_s",
        poisson_key(OURS),
        (poisson_key(theirs),),
        SERVING[embedder].litserve_poisson,
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Everything about one embedder."""
    medians = result["medians"]
    parts = [
        f"### {result['embedder']['name']}, engine {result['engine.json']['engine']}",
        "\n".join(ratio_table(result["ratios"])),
        f"{result['rounds']['told']}.",
        "\n".join(_system_table(medians)),
    ]
    rates = {name: one["per_s"] for name, one in medians.items() if name.endswith(" | Poisson")}
    if rates:
        parts.append("\n".join(_poisson_table(rates, result["embedder"]["slo_p99_ms"])))
    return "\n\n".join([*parts, "\n".join(_stage_table(result["stages"]))])


def _system_table(cells: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    limit = cells[key(ROOFLINE, 0, 1)]
    ours = {
        users: cells[key(OURS, users, 1)]["images_per_s"]
        for users in CONCURRENCY
        if key(OURS, users, 1) in cells
    }
    yield (
        "| system | callers | images a request | images/s | of ours | p50 ms | p99 ms "
        "| server CPU-ms an image | of the roofline's | peak memory MB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    yield (
        f"| {ROOFLINE} | - | - | {limit['images_per_s']:.1f} | - | - | - | {limit['cpu_ms']:.2f} "
        f"| 1.00 | {limit['memory_mb']:.0f} |"
    )
    for name, cell in cells.items():
        system, callers, *images = name.split(" | ")
        if system == ROOFLINE or not images:
            continue
        users, per_request = int(callers.split()[0]), int(images[0].split()[0])
        of_ours = cell["images_per_s"] / ours[users] if users in ours and per_request == 1 else None
        yield (
            f"| {system} | {users} | {per_request} | {cell['images_per_s']:.1f} "
            f"| {'-' if of_ours is None else f'{of_ours:.2f}'} "
            f"| {cell['p50_ms']:.1f} | {cell['p99_ms']:.1f} | {cell['cpu_ms']:.2f} "
            f"| {cell['cpu_ms'] / limit['cpu_ms']:.2f} | {cell['memory_mb']:.0f} |"
        )


def _poisson_table(rates: Mapping[str, float], slo: float) -> Iterator[str]:
    yield f"| system | highest Poisson rate that holds p99 <= {slo:g} ms, requests/s |"
    yield "|---|---|"
    for name, rate in rates.items():
        yield f"| {name.removesuffix(' | Poisson')} | {rate:.1f} |"


def _stage_table(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Columns are loads; rows are stages, then CPU time by process, then batches."""
    yield f"| our server | {' | '.join(stages)} |"
    yield "|---" * (len(stages) + 1) + "|"
    groups = (
        ("stages_ms", "{}, ms of a mean request", ".2f"),
        ("cpu_ms_per_image_by_process", "CPU-ms an image: {}", ".2f"),
        ("mean_batch", "mean batch: {}", ".1f"),
    )
    for group, title, form in groups:
        names = list(dict.fromkeys(name for load in stages.values() for name in load[group]))
        for name in names:
            values = (load[group].get(name) for load in stages.values())
            cells = ("-" if value is None else format(value, form) for value in values)
            yield f"| {title.format(name)} | {' | '.join(cells)} |"
