"""docs/performance.md is filled from results, section by section."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hdrh", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from unified_embedding.load import capacity, performance_page
from unified_embedding.measure.poisson_limit import Trial

MACHINE = {"cpu": "a processor", "cores": 2, "load_average": [0.5, 0.4, 0.3]}
MADE = {"commit": "0123456789ab", "date": "2026-11-22T00:00:00+00:00", "machine": MACHINE}


def capacity_record() -> dict[str, Any]:
    curve = [Trial(rate, 1.0, 5.0, 9.0, 6.0, rate) for rate in (50.0, 100.0)]
    overload = {"offered": 400.0, "goodput": 180.0, "refused": 200.0, "expired": 20.0}
    return {
        "slo_p99_ms": 100.0,
        "highest_poisson_rate": 140.0,
        "closed_loop": {"per_s": 200.0, "concurrency": 32},
        "knee_rate": 100.0,
        "curve": [vars(one) for one in curve],
        "overload": [{"factor": 2.0, **overload, "memory_mb": None}],
        "provenance": MADE,
    }


def tune_record() -> dict[str, Any]:
    figures = {"throughput_of_installed": 1.0, "p50_of_installed": 1.0}
    return {
        "settings": [{"label": "one instance", **figures}, {"label": "two instances", **figures}],
        "pareto_front": ["one instance"],
        "verdict": "kept: one instance; nothing was faster",
        "what": "a network on a processor",
        **MADE,
    }


@pytest.fixture
def page(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(root / "docs" / "performance.md", tmp_path))


def test_sections_with_a_result_are_replaced_and_others_stay(page: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    capacity.write(capacity_record(), results / "capacity")
    (results / "tune").mkdir()
    (results / "tune" / "tune.json").write_text(json.dumps(tune_record()))
    (results / "tune" / "pareto.svg").write_text("<svg/>")
    before = page.read_text()
    performance_page.main(results, page)
    text = page.read_text()
    assert "**140 requests/s** hold p99 <= 100 ms" in text
    assert "| 2 | 400 | 180 | 200 | 20 | - |" in text
    assert "| * | one instance | 1.000 | 1.000 |\n|  | two instances | 1.000 | 1.000 |" in text
    assert "commit 0123456789ab" in text
    for plot in ("capacity-latency", "capacity-overload", "tune-pareto"):
        assert f"(images/performance/{plot}.svg)" in text
        assert (tmp_path / "images" / "performance" / f"{plot}.svg").read_text().startswith("<svg")
    assert section(text, "bench") == section(before, "bench")
    # A second run changes nothing.
    performance_page.main(results, page)
    assert page.read_text() == text


def test_every_section_has_its_place(page: Path) -> None:
    for name in performance_page.SECTIONS:
        assert section(page.read_text(), name)


def test_a_page_without_marks_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "performance.md"
    page.write_text("nothing")
    capacity.write(capacity_record(), tmp_path / "results" / "capacity")
    with pytest.raises(SystemExit):
        performance_page.main(tmp_path / "results", page)
    assert "lacks the marks <!-- capacity -->" in capsys.readouterr().err
    assert page.read_text() == "nothing"


def section(text: str, name: str) -> str:
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end: {name} -->")[0]
