"""`make growth`: its tables, its plots and the shapes of theory, from made-up results."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hdrh", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from programs import run_program

from unified_embedding.load import growth_tables, performance_page
from unified_embedding.load.growth_tables import FAISS, OURS, PARTS, THREADS, cell
from unified_embedding.measure.resuming import left

MACHINE = {"cpu": "a processor", "cores": 2, "load_average": [0.5, 0.4, 0.3]}
MADE = {
    "embedder": "a trunk",
    "engine": "openvino-bf16-0123456789ab",
    "seconds": 8.0,
    "rows": 1_000_000,
    "commit": "0123456789ab",
    "date": "2026-11-26T00:00:00+00:00",
    "machine": MACHINE,
}


def point(cpu_ms: float, p99_ms: float, memory_mb: float, **own: Any) -> dict[str, Any]:
    figures = {"images_per_s": 200.0, "p50_ms": p99_ms / 2, "p99_ms": p99_ms}
    return own | figures | {"cpu_ms": cpu_ms, "memory_mb": memory_mb, "busy": []}


def records() -> dict[str, dict[str, Any]]:
    loads = {"max_batch": 16, "held_bytes": 200_000.0}
    # A batch's fixed cost of 4 ms beside 4 ms of each picture, exactly as theory has it.
    callers = [
        point(4 + 4 / min(users, 16), 9.0 * users, 400 + 0.2 * (users - 1), callers=users)
        for users in (1, 2, 8, 16, 256)
    ]
    images = [point(6.0 + n, 20.0, 400.0, images=n) for n in (1, 4, 16)]
    sizes = [
        point(4 + slope * pixels / 1e6, pixels / 1e5, 400.0, format=kind, pixels=pixels, bytes=9000)
        for kind, slope in (("JPEG", 1), ("PNG", 20))
        for pixels in (10_000, 1_000_000, 50_000_000)
    ]
    rates = {OURS: 190.0, FAISS: 200.0}
    ratios = [
        {
            "name": "searches/s, 32 threads",
            "ratio": 0.97,
            "low": 0.96,
            "high": 0.98,
            "rounds": 9,
            "target": ">= 0.95",
            "verdict": "met",
            "busy": False,
        }
    ]
    found = {
        cell(name, threads): {"per_s": rate * min(2, threads), "p50_ms": 5.0 * max(1, threads / 2)}
        for name, rate in rates.items()
        for threads in THREADS
    }
    said = "the PNG image has too many pixels"
    servers = [point(6.0, 0.0, 400.0 * n, servers=n) for n in (1, 2, 4)]
    servers[1]["busy"] = ["5% of the cores' time stolen"]
    parts: dict[str, dict[str, Any]] = {
        "callers": {"points": callers, **loads},
        "images": {"points": images, "callers": 8, **loads},
        "pictures": {
            "points": sizes,
            "callers": 2,
            "refused": {"pixels": 50_013_184, "ms": 4.6, "said": said},
        },
        "search": {
            "ratios": ratios,
            "rounds": {"told": "9 rounds in random order, machine quiet"},
            "medians": found,
            "cores": 2,
        },
        "servers": {"points": servers, "pictures": 1000},
    }
    return {part: json.loads(json.dumps(parts[part] | MADE)) for part in PARTS}


def test_every_part_has_its_table_its_plot_and_a_sentence(root: Path, tmp_path: Path) -> None:
    results, page = tmp_path / "results" / "growth", tmp_path / "performance.md"
    results.mkdir(parents=True)
    for part, record in records().items():
        (results / f"{part}.json").write_text(json.dumps(record))
        (results / f"{part}.svg").write_text(growth_tables.plot(part, record))
    shutil.copy(root / "docs" / "performance.md", page)
    performance_page.main(tmp_path / "results", page)
    text = page.read_text()
    found = {
        part: text.partition(f"<!-- growth: {part} -->")[2].partition("<!-- end:")[0]
        for part in PARTS
    }
    for part, body in found.items():
        assert "What grows: " in body
        assert f"![{PARTS[part]}](images/performance/growth-{part}.svg)" in body
        svg = (tmp_path / "images" / "performance" / f"growth-{part}.svg").read_text()
        assert svg.startswith("<svg")
        assert "commit 0123456789ab, 2026-11-26" in body
    assert "| 16 | 200.0 | 72.0 | 144.0 | 4.25 | 403 |" in found["callers"]
    assert "p99 passes 100 ms at 16 callers (144 ms)" in found["callers"]
    assert "costs 8.00 CPU-ms at first and 4.25 at 256 callers" in found["callers"]
    assert "memory changes by +51 MB" in found["callers"]
    # Dearer with more pictures a request: that is said.
    assert "p99 stays within 100 ms; a picture costs 3.14 times the least" in found["images"]
    assert "| PNG, 50 | 9 | 200.0 | 250.0 | 500.0 | 1004.00 | 400 |" in found["pictures"]
    assert 'refused after 5 ms with "the PNG image has too many pixels"' in found["pictures"]
    assert "| searches/s, 32 threads | 0.97 [0.96, 0.98] | 9 | >= 0.95 | met |" in found["search"]
    assert "search 2.0 times as often as one, and a search takes 16.0 times" in found["search"]
    assert "embed 1.00 times as many pictures a second as one" in found["servers"]
    assert "busy** in 1 of 3 points (5% of the cores' time stolen)" in found["servers"]


def test_theory_holds_where_it_was_made_up_to() -> None:
    (callers, _, sizes, *_) = records().values()
    points = callers["points"]
    shared = growth_tables.batching(points, "callers", callers["max_batch"])
    assert shared == [(one["callers"], pytest.approx(one["cpu_ms"])) for one in points]
    held = growth_tables.held(points, "callers", lambda one: 200_000 * one["callers"])
    assert held == [(one["callers"], pytest.approx(one["memory_mb"])) for one in points]
    png = [one for one in sizes["points"] if one["format"] == "PNG"]
    line = growth_tables.linear(png, "cpu_ms", "pixels")
    assert line == [(one["pixels"], pytest.approx(one["cpu_ms"])) for one in png]


def test_an_interrupted_run_goes_on_and_a_whole_one_begins_anew(tmp_path: Path) -> None:
    file, settings = tmp_path / "done.json", {"commit": "0123456789ab", "seconds": 8}
    steps = ["callers", "images", "search"]
    first = left(steps, file, settings)
    assert next(first) == "callers"
    # Asked for the next one, the first counts as done; the second does not yet.
    assert next(first) == "images"
    first.close()
    assert list(left(steps, file, {**settings, "seconds": 2})) == steps
    again = left(steps, file, settings)
    assert next(again) == "callers"  # The other settings' run was whole.
    assert next(again) == "images"
    again.close()
    # Some steps alone, in between: they are measured, done or not, and the others stay done.
    assert list(left(["search"], file, settings)) == ["search"]
    assert list(left(steps, file, settings)) == ["images", "search"]
    assert not file.exists()
    assert list(left(steps, file, settings)) == steps
    file.write_text("[damaged")
    assert list(left(steps, file, settings)) == steps


def test_an_unknown_part(root: Path) -> None:
    done = run_program(root, "bench/growth.py", "--only", "callers,colours")
    assert done.returncode == 1
    assert "--only callers,colours: use some of callers, images, pictures" in done.stderr
