"""Tables of `make bench`, from bench.json's values."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import ge, le
from typing import Any, Final

CONCURRENCY: Final = (1, 8, 32)
OURS: Final = "our server"
LITSERVE: Final = ("LitServe, 1 worker", "LitServe, 2 workers")
TORCH: Final = "FastAPI + torch fp32"
ROOFLINE: Final = "roofline"


@dataclass(frozen=True)
class Ratio:
    """One figure that has a target.

    Attributes:
        name: for tables.
        value: measured.
        target: what it should be.
        better: le when smaller is better, ge when larger is.
    """

    name: str
    value: float
    target: float
    better: Callable[[float, float], bool]

    @property
    def met(self) -> bool:
        """The target is reached."""
        return self.better(self.value, self.target)


# CPU at 32 callers, CPU at 16 images a request, throughput and p50 against LitServe, throughput
# against torch, Poisson rate against LitServe.
_TARGETS: Final[Mapping[str, tuple[float, ...]]] = {
    "Lite0": (1.12, 1.06, 1.1, 0.8, 5.0, 1.2),
    "SE-ResNeXt101": (1.04, 1.03, 1.0, 0.95, 3.0, 1.0),
    "SE-ResNeXt101 int8": (1.04, 1.03, 1.0, 0.95, 5.0, 1.0),
}


def key(system: str, users: int, per_request: int) -> str:
    """Name of a cell in bench.json."""
    return f"{system} | {users} callers | {per_request} a request"


def ratios(result: Mapping[str, Any]) -> list[Ratio]:
    """The figures that the targets are about."""
    cells = {name: cell["median"] for name, cell in result["cells"].items()}
    most = CONCURRENCY[-1]

    def of(system: str, users: int, figure: str, per_request: int = 1) -> float:
        return float(cells[key(system, users, per_request)][figure])

    limit = float(cells[key(ROOFLINE, 0, 1)]["cpu_ms"])
    rate = of(OURS, most, "images_per_s")
    found: list[tuple[str, float, Callable[[float, float], bool]]] = [
        (f"server CPU-ms / roofline, {most} callers", of(OURS, most, "cpu_ms") / limit, le),
        ("the same with 16 images a request", of(OURS, 8, "cpu_ms", 16) / limit, le),
        (
            f"images/s / LitServe at its best, {most} callers",
            rate / max(of(name, most, "images_per_s") for name in LITSERVE),
            ge,
        ),
        (
            "p50 of one caller / LitServe at its best",
            of(OURS, 1, "p50_ms") / min(of(name, 1, "p50_ms") for name in LITSERVE),
            le,
        ),
        (f"images/s / {TORCH}, {most} callers", rate / of(TORCH, most, "images_per_s"), ge),
    ]
    limits = result["poisson"]
    if limits:
        (theirs,) = (one["rate"] for name, one in limits.items() if name != OURS)
        slo = result["embedder"]["slo_p99_ms"]
        ratio = limits[OURS]["rate"] / theirs if theirs else float("inf")
        found.append((f"highest Poisson rate at p99 <= {slo:g} ms / LitServe", ratio, ge))
    targets = _TARGETS[result["embedder"]["name"]]
    return [
        Ratio(name, value, target, better)
        for (name, value, better), target in zip(found, targets, strict=False)
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Everything about one embedder."""
    parts = [
        f"### {result['embedder']['name']}, engine {result['engine.json']['engine']}",
        "\n".join(_ratio_table(ratios(result))),
        "\n".join(_system_table(result)),
        *(["\n".join(_poisson_table(result))] if result["poisson"] else []),
        "\n".join(_stage_table(result["stages"])),
    ]
    return "\n\n".join(parts)


def _ratio_table(found: list[Ratio]) -> Iterator[str]:
    yield "| ratio of this run | measured | target | |"
    yield "|---|---|---|---|"
    for one in found:
        sign = "<=" if one.better is le else ">="
        verdict = "met" if one.met else "missed"
        yield f"| {one.name} | {one.value:.2f} | {sign} {one.target:g} | {verdict} |"


def _system_table(result: Mapping[str, Any]) -> Iterator[str]:
    cells = {name: cell["median"] for name, cell in result["cells"].items()}
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
        system, callers, images = name.split(" | ")
        users, per_request = int(callers.split()[0]), int(images.split()[0])
        if system == ROOFLINE:
            continue
        of_ours = cell["images_per_s"] / ours[users] if users in ours and per_request == 1 else None
        yield (
            f"| {system} | {users} | {per_request} | {cell['images_per_s']:.1f} "
            f"| {'-' if of_ours is None else f'{of_ours:.2f}'} "
            f"| {cell['p50_ms']:.1f} | {cell['p99_ms']:.1f} | {cell['cpu_ms']:.2f} "
            f"| {cell['cpu_ms'] / limit['cpu_ms']:.2f} | {cell['memory_mb']:.0f} |"
        )


def _poisson_table(result: Mapping[str, Any]) -> Iterator[str]:
    slo = result["embedder"]["slo_p99_ms"]
    yield f"| system | highest Poisson rate that holds p99 <= {slo:g} ms, requests/s |"
    yield "|---|---|"
    for name, one in result["poisson"].items():
        yield f"| {name} | {one['rate']:.1f} |"


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
