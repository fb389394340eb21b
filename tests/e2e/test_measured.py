"""The programs that measure, against the real server: short, and no figure is judged."""

import contextlib
import json
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hdrh", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from programs import run_program

from unified_embedding.serving import model_config
from unified_embedding.serving.local_server import running
from unified_embedding.serving.repository import assemble

pytestmark = pytest.mark.e2e
MODEL = "models/unified-embedder-lite0"


def run(root: Path, *arguments: str, **environment: str) -> str:
    done = run_program(root, *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def own_repository(root: Path, repository: Path, tmp_path: Path) -> Path:
    """A copy of the session's repository that a test may change."""
    folder = tmp_path / "model_repository"
    assemble(root / "model_repository", folder)
    shutil.copytree(repository / "embedder", folder / "embedder")
    return folder


def test_bench_measures_every_system(root: Path, repository: Path, tmp_path: Path) -> None:
    if not all(find_spec(name) for name in ("aiohttp", "litserve", "fastapi", "torch")):
        pytest.skip("the extra `peers` is not installed")
    short = ["--embedders", "lite0", "--seconds", "0.2", "--minutes", "0", "--no-poisson"]
    place = ["--repository", str(repository), "--out", str(tmp_path)]
    said = run(root, "bench/serving_bench.py", *short, *place, MARKED=str(tmp_path))
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    systems = {name.split(" | ")[0] for name in result["cells"]}
    assert systems == {
        "roofline",
        "our server",
        "LitServe, 1 worker",
        "LitServe, 2 workers",
        "FastAPI + torch fp32",
    }
    for cell in result["medians"].values():
        assert min(cell.values()) > 0
    # One round decides nothing, however far the ratio is from its target.
    assert {one["verdict"] for one in result["ratios"]} == {"undecided"}
    assert len(result["ratios"]) == 6
    parts = result["stages"]["32 callers x 1"]["cpu_ms_per_image_by_process"]
    assert {"tritonserver", "preprocess", "embedder", "binarizer"} <= set(parts)
    assert "server CPU-ms / roofline, 32 callers" in said
    # Nothing is left behind, paused or not.
    assert started_here(f"MARKED={tmp_path}") == []


def started_here(mark: str) -> list[str]:
    """Command lines of the processes whose environment holds `mark`, orphans too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end meanwhile, and another user's cannot be read.
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_tune_keeps_or_installs_and_says_which(
    root: Path, own_repository: Path, tmp_path: Path
) -> None:
    embedder = own_repository / "embedder"
    before, tuned, out = model_config.read(embedder), tmp_path / "tuning.json", tmp_path / "tune"
    arguments = ["--repository", str(own_repository), "--out", str(out)]
    short = ["--knobs", "batch", "--seconds", "0.3", "--minutes", "0"]
    said = run(root, "build/tune.py", *arguments, *short, TUNING=str(tuned))
    record = json.loads((out / "tune.json").read_text())
    assert [one["setting"]["max_batch_size"] for one in record["settings"]] == [16, 32]
    assert record["pareto_front"]
    assert record["settings"][0]["throughput_of_installed"] == 1
    # One round decides nothing: whatever is installed stays, and the reason is given.
    assert record["verdict"].startswith("kept: ")
    assert "kept: " in said
    assert {one["verdict"] for one in record["ratios"]} <= {"undecided"}
    assert model_config.read(embedder) == before
    assert not tuned.exists()


@pytest.mark.slow
@pytest.mark.skipif("RUN_SLOW" not in os.environ, reason="takes a minute; RUN_SLOW=1 runs it")
def test_capacity_sets_overload_against_the_maximum(
    root: Path, server: Any, tmp_path: Path
) -> None:
    short = ["--seconds", "1", "--minutes", "0", "--out", str(tmp_path)]
    said = run(root, "bench/capacity.py", *short, HOST=server.grpc_url)
    record = json.loads((tmp_path / "capacity.json").read_text())
    assert record["highest_poisson_rate"] > 0
    assert record["highest_poisson_interval"] is None
    assert [one["factor"] for one in record["overload"]] == [0.5, 1, 1.5, 2, 3]
    for one in record["overload"]:
        assert one["goodput"] > 0
        assert one["memory_mb"] > 50
    # By the second and by the server's CPU second; the latter has no target.
    assert [one["verdict"] for one in record["ratios"]] == ["", *["undecided", ""] * 2]
    assert all(one["ratio"] > 0 for one in record["ratios"])
    assert "at 2 times the maximum / that maximum" in said
    assert "1 round in random order" in said


def growth(root: Path, repository: Path, out: Path, part: str) -> Any:
    short = ["--seconds", "0.1", "--rows", "1000", "--only", part]
    run(root, "bench/growth.py", *short, "--repository", str(repository), "--out", str(out))
    assert (out / f"{part}.svg").read_text().startswith("<svg")
    assert not (out / "done.json").exists()
    return json.loads((out / f"{part}.json").read_text())


def test_growth_of_threads_that_search(root: Path, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the extra `search` is not installed")
    record = growth(root, repository, tmp_path, "search")
    assert [one["target"] for one in record["ratios"]] == ["", "", "", ">= 0.95"]
    assert all(min(one.values()) > 0 for one in record["medians"].values())


@pytest.mark.slow
@pytest.mark.skipif("RUN_SLOW" not in os.environ, reason="takes half a minute; RUN_SLOW=1 runs it")
def test_growth_of_requests(root: Path, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the extra `search` is not installed")
    points = growth(root, repository, tmp_path, "images")["points"]
    assert [one["images"] for one in points] == [1, 2, 4, 8, 16]
    for one in points:
        assert one["memory_mb"] > 50
        assert one["p99_ms"] >= one["p50_ms"] > 0


def test_the_server_shows_what_was_tuned(root: Path, own_repository: Path, tmp_path: Path) -> None:
    from tritonclient.grpc import InferenceServerClient

    from unified_embedding.cli import tune
    from unified_embedding.engine.tuning import tuning

    tuned = tmp_path / "tuning.json"
    name, installed = tune.what_is_installed(own_repository, tuned)
    parameters = {**installed.parameters, "slice": "8"}
    chosen = replace(installed, instances=2, queue_delay_us=200, parameters=parameters)
    tuning.save(chosen, name, {}, tuned)
    tune.install(own_repository, tuned)
    with running(own_repository) as server, InferenceServerClient(server.grpc_url) as client:
        config: Any = client.get_model_config("embedder").config
    assert config.instance_group[0].count == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert config.parameters["slice"].string_value == "8"
    assert config.parameters["threads"].string_value == installed.parameters["threads"]
    # The answers are the same, and so is their engine.
    engine = json.loads((own_repository / "embedder/1/engine.json").read_text())
    assert config.parameters["unified_embedding.engine"].string_value == engine["engine"]


def test_soak_and_load_report_on_a_running_server(root: Path, server: Any, tmp_path: Path) -> None:
    soak, load = tmp_path / "soak", tmp_path / "load"
    run(root, "bench/soak.py", "--seconds", "2", "--out", str(soak), HOST=server.grpc_url)
    stretches = json.loads((soak / "soak.json").read_text())["stretches"]
    assert len(stretches) == 60
    assert all(one["memory_mb"] > 50 for one in stretches)
    # A stretch of a thirtieth of a second may have no tick of the CPU's clock.
    assert sum(one["cpu_ms"] for one in stretches) > 0
    assert (soak / "memory.svg").read_text().startswith("<svg")
    said = run(root, "bench/load.py", "--out", str(load), HOST=server.grpc_url, DURATION="2")
    assert "closed loop" in said
    for loop in ("closed-loop", "open-loop"):
        report = json.loads((load / loop / "report.json").read_text())
        assert report["completed"] > 0
        assert report["failed"] == 0
        assert report["server"]["stages_ms"]["engine"] > 0
    # The page's tables come from these files.
    page = tmp_path / "performance.md"
    shutil.copy(root / "docs" / "performance.md", page)
    run(root, "bench/performance_page.py", "--results", str(tmp_path), "--into", str(page))
    text = page.read_text()
    assert "32 callers; first and last tenth" in text
    assert "| stage of a mean request | ms |" in text
    assert (tmp_path / "images" / "performance" / "soak-memory.svg").is_file()
