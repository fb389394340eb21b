"""docs/performance.md is filled from results, section by section."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hdrh", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from unified_embedding.load import capacity, performance_page
from unified_embedding.measure.poisson_limit import Trial

MACHINE = {"cpu": "a processor", "cores": 2, "load_average": [0.5, 0.4, 0.3]}
MADE = {"commit": "0123456789ab", "date": "2026-11-22T00:00:00+00:00", "machine": MACHINE}
RATIOS = [
    {
        "name": "answered at twice the maximum",
        "ratio": 0.8,
        "low": 0.76,
        "high": 0.83,
        "rounds": 9,
        "target": ">= 0.85",
        "verdict": "missed",
        "busy": False,
    }
]


def capacity_record() -> dict[str, Any]:
    curve = [Trial(rate, 1.0, 5.0, 9.0, 6.0, rate) for rate in (50.0, 100.0)]
    overload = {"offered": 400.0, "goodput": 180.0, "refused": 200.0, "expired": 20.0}
    return {
        "slo_p99_ms": 100.0,
        "highest_poisson_rate": 140.0,
        "highest_poisson_interval": [131.0, 150.0],
        "ratios": RATIOS,
        "rounds": {"told": "9 rounds in random order, machine quiet"},
        "closed_loop": {"per_s": 200.0, "concurrency": 32},
        "knee_rate": 100.0,
        "curve": [vars(one) for one in curve],
        "overload": [{"factor": 2.0, **overload, "memory_mb": None}],
        "provenance": MADE | {"server": {"engine": "openvino-int8-0123456789ab"}},
    }


def tune_record() -> dict[str, Any]:
    figures: dict[str, Any] = {"throughput_of_installed": 1.0, "p50_of_installed": 1.0}
    figures |= {"throughput_interval": [0.97, 1.03], "p50_interval": None}
    return {
        "settings": [{"label": "one instance", **figures}, {"label": "two instances", **figures}],
        "pareto_front": ["one instance"],
        "verdict": "kept: one instance; nothing was faster",
        "ratios": [one | {"busy": True} for one in RATIOS],
        "rounds": {"once more": {"told": "the machine was busy in all"}},
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
    assert "**140 [131, 150] requests/s** hold p99 <= 100 ms" in text
    row = "| answered at twice the maximum | 0.80 [0.76, 0.83] | 9 | >= 0.85 | missed"
    assert f"{row} |" in section(text, "capacity")
    assert f"{row} (machine busy) |" in section(text, "tune")
    assert "once more: the machine was busy in all" in text
    assert "| 2 | 400 | 180 | 200 | 20 | - |" in text
    assert "| * | one instance | 1.00 [0.97, 1.03] | 1.00 |\n|  | two instances | " in text
    assert "openvino-int8-0123456789ab; commit 0123456789ab, " in section(text, "capacity")
    for plot in ("capacity-latency", "capacity-overload", "tune-pareto"):
        assert f"(images/performance/{plot}.svg)" in text
        assert (tmp_path / "images" / "performance" / f"{plot}.svg").read_text().startswith("<svg")
    assert section(text, "bench") == section(before, "bench")
    # A second run changes nothing.
    performance_page.main(results, page)
    assert page.read_text() == text


def test_the_page_says_which_parts_are_of_which_run(page: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    capacity.write(capacity_record(), results / "capacity")
    performance_page.main(results, page)
    (told,) = section(page.read_text(), "parts").strip().splitlines()
    older = re.search(r"commit ([0-9a-f]+)", section(page.read_text(), "bench"))
    assert older is not None
    assert told.startswith(f"**Parts of different commits.** {older[1]}: bench (")
    assert "; 0123456789ab: capacity (2026-11-22)" in told
    # One commit for all: nothing to warn of.
    whole = re.sub(r"commit [0-9a-f]{12}(-dirty)?,", "commit 0123456789ab,", page.read_text())
    page.write_text(whole)
    performance_page.main(results, page)
    told = section(page.read_text(), "parts").strip()
    assert re.match(r"All parts (that were measured )?are of commit 0123456789ab", told)
    # Tables of an older program.
    bare = re.search(r"before verdicts had intervals: ([a-z, ]+)", told)
    assert ("capacity" in bare[1] if bare else False) is False
    page.write_text(page.read_text().replace("95 % interval", "value"))
    performance_page.main(tmp_path / "nothing", page)
    told = section(page.read_text(), "parts")
    assert "before verdicts had intervals: bench, capacity, tune" in told
    # A part that was never measured.
    page.write_text(whole.replace(section(whole, "soak"), "\n"))
    performance_page.main(results, page)
    assert section(page.read_text(), "soak").strip() == "Not measured."
    (told,) = section(page.read_text(), "parts").strip().splitlines()
    assert told.startswith("All parts that were measured are of commit 0123456789ab; ")
    missing = re.search(r"not measured: ([^*]+)", told)
    assert missing is not None
    assert "soak" in missing[1].split(", ")
    # And still when another one has its first result.
    performance_page.main(tmp_path / "nothing", page)
    assert section(page.read_text(), "soak").strip() == "Not measured."


def test_results_of_another_version_are_refused(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = page.read_text()
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.json").write_text('{"results": [], "rounds": 3}')
    with pytest.raises(SystemExit):
        performance_page.main(tmp_path, page)
    assert "bench.json is not of this version" in capsys.readouterr().err
    assert page.read_text() == before


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
    assert "lacks the marks <!-- bench -->" in capsys.readouterr().err
    assert page.read_text() == "nothing"


def test_make_performance_goes_on_with_the_program_that_was_not_finished(
    root: Path, tmp_path: Path
) -> None:
    """A stand-in for Python notes what it is given, and is interrupted once."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    stand_in = tmp_path / "python"
    stand_in.write_text(
        'echo "$*" >> ran\n'
        'if [ "$1" = bench/soak.py ] && [ ! -e once ]; then touch once; exit 130; fi\n'
    )
    command = ["make", "-f", str(root / "Makefile"), "-o", "engine", "-o", ".venv/.stamp-all"]
    command += ["performance", f"PY=sh {stand_in}", "EMBEDDERS=lite0"]

    def run(*settings: str) -> tuple[int, list[str]]:
        (tmp_path / "ran").unlink(missing_ok=True)
        asked = [*command, *settings]
        done = subprocess.run(asked, cwd=tmp_path, check=False, capture_output=True, text=True)
        return done.returncode, (tmp_path / "ran").read_text().splitlines()

    first = ["bench/serving_bench.py --embedders lite0"]
    first += [f"bench/{name}.py" for name in ("capacity", "loadgen", "load", "soak")]
    last = ["bench/growth.py", "build/tune.py", "bench/performance_page.py"]
    code, ran = run()
    assert code != 0
    assert ran == first
    assert run() == (0, ["bench/soak.py", *last])
    # A whole run is followed by a whole run.
    assert run() == (0, first + last)
    # What other settings or another engine left is no part of a run.
    for setting in ("DURATION=1", "FULL=1"):
        (tmp_path / "once").unlink()
        assert run()[1] == first
        assert run(setting) == (0, first + last)
        assert run() == (0, first + last)
    engine = tmp_path / "model_repository" / "embedder" / "1" / "engine.json"
    engine.parent.mkdir(parents=True)
    for name in ("one", "another"):
        (tmp_path / "once").unlink()
        assert run()[1] == first
        engine.write_text(json.dumps({"engine": name}))
    assert run() == (0, first + last)


def section(text: str, name: str) -> str:
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end: {name} -->")[0]
