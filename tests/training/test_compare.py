"""`make compare` on a small made-up data set: killed, resumed, judged, and honest about gaps."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from click.testing import Result
from made_up_shop import SIDE, write_shop
from numpy.typing import NDArray
from typer.testing import CliRunner

from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.errors import DataError
from unified_embedding.evaluation import compare
from unified_embedding.evaluation.comparison import page
from unified_embedding.evaluation.comparison.claims import SEARCHED, Evidence, claims
from unified_embedding.evaluation.comparison.config import CompareConfig, Margins, load_config
from unified_embedding.evaluation.comparison.jobs import (
    check_same,
    chosen_rate,
    in_order,
    seed_job,
    sweep_jobs,
    training_config,
)
from unified_embedding.evaluation.comparison.measured import FIGURES, Measured
from unified_embedding.evaluation.comparison.runner import alone
from unified_embedding.evaluation.embedders import open_embedder
from unified_embedding.protocols.measure import Cell, Samples
from unified_embedding.protocols.tasks import CAMERA_EXACT, MAIN
from unified_embedding.retrieval import Interval
from unified_embedding.training import checkpoint

ROOT = Path(__file__).parents[2]
ROWS = [
    {"name": "shop, long", "role": "specialist-long", "task": "shop", "steps": 3, "minutes": 1},
    {"name": "unified, data", "role": "unified-data", "steps": 6, "minutes": 3},
    {"name": "unified, steps", "role": "unified-steps", "steps": 4, "minutes": 2},
    {
        "name": "GradNorm",
        "role": "gradnorm",
        "steps": 2,
        "minutes": 0.5,
        "last": True,
        "overrides": ["gradnorm={layer: layer4}"],
    },
    {"name": "compatible", "role": "compatible", "steps": 5, "minutes": 1},
]


def write(folder: Path, shop: Path, **changes: object) -> Path:
    """A comparison in `folder` on the manifest of `shop`; returns its configuration."""
    training = {
        "run": "replaced",
        "data": {"manifest": str(shop / "manifest.csv")},
        "model": {"trunk": "resnet10t"},
        "preprocessing": {"size": SIDE // 2},
        "batch": 6,
        "schedule": {"heads": {"steps": 1}},
        "checkpoint_steps": 1,
        "threads": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.yaml").write_text(yaml.safe_dump(training))
    config = {
        "training": "training.yaml",
        "out": str(folder / "runs"),
        "seeds": [0, 1],
        "margins": {"own_task": 2, "code": 1.5, "balance": 2},
        "sweep": {"rates": [0.001, 0.01], "steps": 2},
        "maps": {"bits": [512], "count": 8},
        "rows": ROWS,
        **changes,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(config))
    return folder / "compare.yaml"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    return folder


def command(config: Path) -> list[str]:
    module = "unified_embedding.evaluation.compare"
    out = str(config.parent / "comparison.md")
    return [sys.executable, "-m", module, str(config), "--out", out, "--threads", "1"]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run(config: Path, *options: str) -> Result:
    """The same command in this process, which has torch loaded."""
    app = typer.Typer()
    app.command()(compare.main)
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        app, [*command(config)[3:], *options], catch_exceptions=False
    )


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A training sets how many threads its process has."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = checkpoint.read(folder / "last.pt")["embedder"]
    return found


def test_a_killed_comparison_goes_on_and_ends_as_an_undisturbed_one(
    shop: Path, tmp_path: Path
) -> None:
    rows = [{**ROWS[0], "steps": 12}, {**ROWS[1], "steps": 8}]
    one = {"rows": rows, "seeds": [0], "sweep": {"rates": [0.001], "steps": 2}}
    config = write(tmp_path / "killed", shop, **one)
    first = tmp_path / "killed/runs/shop-long/seed-0"
    second = tmp_path / "killed/runs/unified-data/seed-0"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(config), env=environment(), stdout=log, stderr=log)
    try:
        # Into the second training: its first steps are saved, its end is not.
        deadline = time.monotonic() + 600
        while not (second / "last.pt").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (first / "done.json").exists()
    assert not (second / "done.json").exists()
    assert 0 < checkpoint.read(second / "last.pt")["step"] < 9
    trained = (first / "last.pt").stat().st_mtime_ns
    early_page = (tmp_path / "killed/comparison.md").read_text()
    assert "| unified, data | 0 | float | not run |" in early_page
    assert "not run" not in next(
        x for x in early_page.splitlines() if x.startswith("| shop, long | 1")
    )

    done = run(config)
    assert done.exit_code == 0, done.output
    assert "resuming" in done.output
    assert (first / "last.pt").stat().st_mtime_ns == trained
    undisturbed = write(tmp_path / "undisturbed", shop, **one)
    assert run(undisturbed).exit_code == 0
    expected = weights(tmp_path / "undisturbed/runs/unified-data/seed-0")
    found = weights(second)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    pages = [(tmp_path / name / "comparison.md").read_text() for name in ("killed", "undisturbed")]
    figures = [text.split("## Figures")[1].split("## Budget")[0] for text in pages]
    assert figures[0] == figures[1]
    assert "| unified, data | 1 | float |" in figures[0]


def test_everything_is_trained_measured_and_written(shop: Path, tmp_path: Path) -> None:
    config = write(tmp_path, shop)
    done = run(config)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "comparison.md").read_text()
    table = text.split("## Figures")[1].split("## Differences")[0]
    for row in ROWS:
        line = next(x for x in table.splitlines() if x.startswith(f"| {row['name']} | 2 |"))
        assert "not run" not in line
        assert line.count("(") == len(FIGURES)  # an SD over seeds beside each mean
    budget = text.split("## Budget")[1]
    # Steps of the trunk alone: 3 of 6 pictures of shop; 6 of 2 pictures of each task.
    assert "| shop, long | 3 | 18 |" in budget
    assert "| unified, data | 6 | 12 |" in budget
    assert "2 of 2" in budget
    codes = text.split("## Codes under random maps")[1]
    assert "| 512 | code |" in codes
    assert "SD" in codes
    assert "**not tested**" in text  # C1 lacks two specialists
    loaded = load_config(config)
    unified = loaded.find("unified-steps")
    assert unified is not None
    for job in sweep_jobs(loaded, unified):
        record = job.record()
        assert record is not None
        assert record["seed"] == 100
    balanced = loaded.find("gradnorm")
    assert balanced is not None
    record = seed_job(loaded, balanced, 0).record()
    assert record is not None
    assert len(set(record["loss_weights"].values())) > 1
    assert record["trunk_steps"] == 2  # a third one moved proxies alone
    assert (record["steps"], record["images_of_each_task"]) == (3, 2 * 2)
    check_compatible(loaded, text.split("## Backward compatibility")[1].split("## Budget")[0])

    before = (tmp_path / "comparison.md").read_bytes()
    again = run(config)
    assert again.exit_code == 0
    assert (tmp_path / "comparison.md").read_bytes() == before
    first, second = (seed_job(loaded, unified, seed).folder for seed in (0, 1))
    for name in ("last.pt", "done.json"):  # trained anew, with another outcome
        (first / name).rename(first / f"{name}.kept")
        (first / name).write_bytes((second / name).read_bytes())
    refused = run(config, "--page")
    assert refused.exit_code == 1
    assert "compatible with other weights than" in " ".join(refused.output.split())
    for name in ("last.pt", "done.json"):
        (first / f"{name}.kept").rename(first / name)
    changed = write(tmp_path, shop, common=["schedule.momentum=0.5"])
    refused = run(changed)
    assert refused.exit_code == 1
    assert "was trained with another schedule" in " ".join(refused.output.split())


def check_compatible(config: CompareConfig, section: str) -> None:
    """Each seed has its own old embedder; what the page shows is what a search over it finds."""
    assert "not run" not in section
    old, new = config.find("unified-steps"), config.find("compatible")
    assert old is not None
    assert new is not None
    manifest = config.training.parent / "training.yaml"
    rows = read_manifest(Path(yaml.safe_load(manifest.read_text())["data"]["manifest"]))
    catalogue = [r for r in rows if r["task"] == "shop" and r["domain"] == "catalogue"]
    crops = [r for r in rows if r["task"] == "shop" and r["domain"] == "scene"]
    crops = [r for r in crops if r["split"] == "test"]
    shop = Path(yaml.safe_load(manifest.read_text())["data"]["manifest"]).parent
    found = []
    for seed in config.seeds:
        paths = [seed_job(config, row, seed).folder / "last.pt" for row in (old, new)]
        stated = checkpoint.read(paths[1])["summary"]["compatible_with"]
        assert stated["old"] == str(paths[0])
        gallery, queries = (
            open_embedder(str(path)).embed([(shop / r["image"]).read_bytes() for r in chosen])
            for path, chosen in zip(paths, (catalogue, crops), strict=True)
        )
        near = (unit(queries) @ unit(gallery).T).argmax(axis=1)
        hits = [catalogue[n]["identity"] == r["identity"] for n, r in zip(near, crops, strict=True)]
        found.append(100 * np.mean(hits))
    line = next(x for x in section.splitlines() if x.startswith("| compatible | unified, steps |"))
    name, metric = MAIN["shop"]
    at = [x.strip() for x in section.splitlines()[4].split("|")].index(f"{name} {metric}")
    shown = line.split("|")[at].strip()
    assert shown == f"{np.mean(found):.1f} ({np.std(found, ddof=1):.1f})"


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def record(folder: Path, score: float) -> None:
    folder.mkdir(parents=True)
    (folder / "done.json").write_text(json.dumps({"score": score, "identity": {}}))


def test_the_sweep_decides_on_validation_and_of_equal_ones_the_lower(
    shop: Path, tmp_path: Path
) -> None:
    config = load_config(write(tmp_path, shop, sweep={"rates": [0.02, 0.01, 0.03], "steps": 2}))
    row = config.rows[0]
    for job, score in zip(sweep_jobs(config, row), (0.5, 0.5, 0.4), strict=True):
        assert chosen_rate(config, row) is None
        with pytest.raises(DataError, match="sweep of its rate is not complete"):
            training_config(config, seed_job(config, row, 0))
        assert job.seed not in config.seeds
        record(job.folder, score)
    assert chosen_rate(config, row) == 0.01
    assert training_config(config, seed_job(config, row, 0)).schedule.rate == 0.01
    with pytest.raises(DataError, match=r"trained with another .*seed.*choose another out"):
        check_same(config, sweep_jobs(config, row)[0], {"identity": {}})


def test_cheap_rows_come_first_a_seed_at_a_time_and_last_ones_last(
    shop: Path, tmp_path: Path
) -> None:
    config = load_config(write(tmp_path, shop))
    runs = [(job.row.name, job.seed) for job in in_order(config) if job.rate is None]
    # The compatible row costs least, but needs another's run as its old embedder.
    one_seed = ["shop, long", "unified, steps", "unified, data", "compatible"]
    assert runs == [(n, s) for s in (0, 1) for n in one_seed] + [("GradNorm", 0), ("GradNorm", 1)]
    swept = [job.row.name for job in in_order(config) if job.rate is not None]
    assert swept == [name for name in (*one_seed, "GradNorm") for _ in range(2)]


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path / "runs") as first, alone(tmp_path / "runs") as second:
        assert (first, second) == (True, False)
    with alone(tmp_path / "runs", wait=True) as third:
        assert third


def test_processes_share_the_trainings(shop: Path, tmp_path: Path) -> None:
    rows = [{**row, "steps": 2} for row in ROWS[:2]]
    config = write(tmp_path, shop, rows=rows, sweep={"rates": [0.001], "steps": 2})
    processes = [
        subprocess.Popen(
            command(config),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    told = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    begun = [line for text in told for line in text.splitlines() if re.match(r"\d+ of ", line)]
    assert len(begun) == len(set(begun)) == len(list(in_order(load_config(config)))) == 4
    figures = (tmp_path / "comparison.md").read_text().split("## Figures")[1].split("##")[0]
    assert "not run" not in figures


def test_the_shipped_plan_states_budget_margin_and_equal_data() -> None:
    config = load_config(ROOT / "configs" / "compare.yaml")
    assert config.margins.own_task == 2
    assert len(config.seeds) == 3
    assert {row.role for row in config.rows} == {
        "specialist-short",
        "specialist-long",
        "unified-steps",
        "unified-data",
        "no-layer-norm",
        "gradnorm",
        "compatible",
        "step",
    }
    batch = 48
    images = {row.name: row.steps * batch // (1 if row.task else 3) for row in config.rows}
    assert images["camera specialist, long"] == images["unified, equal task data"] == 48_000
    assert images["unified, equal steps"] == 16_000
    assert abs(images["camera specialist, short"] - 16_000) < batch
    for row in config.rows:
        # Every override fits the training configuration.
        for job in sweep_jobs(config, row):
            found = training_config(config, job)
            assert found.batch == batch
            assert not found.model.fixed_map
            assert found.model.layer_norm == (row.role != "no-layer-norm")
            assert (found.gradnorm is not None) == (row.role == "gradnorm")
            assert (found.compatible_with is not None) == (row.role == "compatible")
    text = page.budget(config)
    assert "0 of 3" in text
    assert "| unified, equal task data | 3,000 | 48,000 |" in text
    unseen = page.render(Measured(config, "", {}, {}))
    assert unseen.count("**not tested**") == 7
    assert "None" not in unseen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [ROWS[0], ROWS[0]]}, "row names must differ"),
        ({"rows": [ROWS[1], {**ROWS[1], "name": "again"}]}, "belongs to one row"),
        ({"rows": [{**ROWS[1], "task": "shop"}]}, "a specialist, and only that"),
        ({"sweep": {"rates": [0.1], "steps": 1, "seed": 1}}, "is a seed of the comparison"),
        ({"sweep": {"rates": [], "steps": 1}}, "sweep.rates"),
        ({"rows": [ROWS[1], ROWS[4]]}, "'compatible' needs a row 'unified-steps'"),
        ({"rows": [{**ROWS[2], "last": True}, ROWS[4]]}, "needs a row 'unified-steps' that is run"),
        ({"margins": {"own_task": 2}}, "margins.code: Field required"),
        ({"budget": 3}, "budget: Extra inputs"),
    ],
)
def test_a_wrong_plan_is_named(
    shop: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_config(write(tmp_path, shop, **change))


MARGINS = Margins(own_task=2, code=1.5, balance=2)
FINE = Interval(0.0, -0.01, 0.01)
BETTER = Interval(0.05, 0.03, 0.07)
OTHERS = {(task, other): BETTER for task in MAIN for other in MAIN if task != other}
HELD = Evidence(
    own=dict.fromkeys(MAIN, FINE),
    others=OTHERS,
    codes=dict.fromkeys(MAIN, FINE),
    norm=dict.fromkeys(MAIN, BETTER),
    balance=dict.fromkeys(MAIN, FINE),
    transfer=BETTER,
    old={(task, by): BETTER for task in MAIN for by in SEARCHED},
)


def verdicts(evidence: Evidence) -> dict[str, str]:
    return {claim.key: claim.verdict for claim in claims(evidence, MARGINS)}


def test_claims_hold_fail_or_were_not_tested_by_their_rules() -> None:
    every = ["C1", "C2", "C3", "C5", "C7", "B1", "B2"]
    assert verdicts(HELD) == dict.fromkeys(every, "held")
    assert verdicts(Evidence()) == dict.fromkeys(every, "not tested")
    beyond, unsure = Interval(-0.01, -0.021, 0.0), Interval(0.02, -0.001, 0.04)
    lost = Interval(-0.016, -0.02, -0.01)
    bad = {
        "C1": Evidence(own={**HELD.own, "camera": beyond}),
        "C2": Evidence(others={**OTHERS, ("shop", "browse"): unsure}),
        "C3": Evidence(codes={**HELD.codes, "shop": lost}, norm=HELD.norm),
        "C5": Evidence(balance={**HELD.balance, "shop": beyond}),
        "C7": Evidence(transfer=unsure),
    }
    for key, evidence in bad.items():
        assert verdicts(evidence)[key] == "did not hold"
    no_help = Evidence(codes=HELD.codes, norm={**HELD.norm, "shop": unsure})
    assert verdicts(no_help)["C3"] == "did not hold"
    # Compatibility has to gain on two of the three, by float (B1) and by code (B2) apart.
    one_less = {**HELD.old, ("camera", "float"): unsure, ("shop", "code"): beyond}
    assert verdicts(Evidence(old=one_less)) == {**verdicts(Evidence()), "B1": "held", "B2": "held"}
    two_less = {**one_less, ("browse", "code"): unsure}
    assert verdicts(Evidence(old=two_less))["B1"] == "held"
    assert verdicts(Evidence(old=two_less))["B2"] == "did not hold"
    # A certain loss within the margin is within the margin.
    certain = Interval(-0.01, -0.015, -0.005)
    assert verdicts(Evidence(own=dict.fromkeys(MAIN, certain)))["C1"] == "held"


def test_differences_are_paired_by_seed_and_the_loss_without_layer_norm_has_its_sign(
    shop: Path, tmp_path: Path
) -> None:
    norm = {"name": "plain", "role": "no-layer-norm", "steps": 4, "minutes": 2}
    config = load_config(write(tmp_path, shop, rows=[*ROWS, norm]))
    rng = np.random.default_rng(0)
    clusters = np.repeat([f"p{number}" for number in range(40)], 5)

    def scored(level: float, code_loss: float) -> dict[Cell, Samples]:
        float_ = rng.normal(level, 0.01, len(clusters))
        found = {}
        for name, metric in (*MAIN.values(), (CAMERA_EXACT, "R@1")):
            found[Cell(name, metric, "float")] = Samples(float_, clusters)
            found[Cell(name, metric, "code")] = Samples(float_ - code_loss, clusters)
        return found

    scores = {
        "unified, steps": {0: scored(0.6, 0.01), 1: scored(0.7, 0.01)},
        "plain": {0: scored(0.5, 0.1), 1: scored(0.5, 0.1), 2: scored(0.0, 0.1)},
        "shop, long": {0: scored(0.5, 0.0)},
        "unified, data": {0: scored(0.8, 0.0), 1: scored(0.0, 0.0)},
    }
    measured = Measured(config, "digest", scores, {})
    found = measured.evidence()
    assert found.norm["shop"].mean == pytest.approx(0.09, abs=1e-9)
    assert found.codes["shop"].mean == pytest.approx(-0.01, abs=1e-9)
    assert set(found.own) == {"shop"}
    assert found.own["shop"].mean == pytest.approx(0.3, abs=0.01)  # seed 1 has no partner
    gain = measured.gain(config.find("unified-steps"), config.find("no-layer-norm"),
                         Cell(*MAIN["shop"], "float"))  # fmt: skip
    assert gain is not None
    assert gain.mean == pytest.approx(0.15, abs=0.01)
    # Seeds differ by .1: the interval covers their spread, which products alone would not show.
    assert gain.high - gain.low > 0.08
    assert isinstance(config, CompareConfig)
