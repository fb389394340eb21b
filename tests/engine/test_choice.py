"""`make engine` without MODEL, TARGET and PRECISION keeps what was chosen before."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the extra `build` is not installed")
pytest.importorskip("openvino", reason="the extra `build` is not installed")

import tiny_embedder as tiny

from unified_embedding import onnx_file
from unified_embedding.cli import engine
from unified_embedding.engine.choice import Choice
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.errors import BuildError


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Two tiny embedders of random weights."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        network = tiny.tiny_embedder(seed)
        onnx_file.save(network, tiny.spec_of(network), folder)
    return folders


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "model_repository"
    folder.mkdir()
    return folder


def record(repository: Path) -> dict:
    return json.loads((repository / "embedder/1/engine.json").read_text())


def test_what_is_not_named_stays_as_it_is_installed(
    models: list[Path],
    few_products: Path,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = models
    engine.main(model=one, gallery=few_products, precision="fp32", repository=repository)
    first = record(repository)
    assert Choice.installed(repository / "embedder") == Choice(one, few_products, "auto", "fp32")
    capsys.readouterr()

    engine.main(repository=repository)
    said = capsys.readouterr().out
    assert f"keeping what is installed: MODEL={one} TARGET=auto PRECISION=fp32" in said
    assert f"engine {first['engine']} of tiny {first['version']} is up to date" in said
    assert record(repository) == first

    # Its recipe changed: it is built again, and not the released embedder instead.
    config = repository / "embedder/config.pbtxt"
    config.write_text("damaged")
    engine.main(repository=repository)
    assert f"installed engine {first['engine']}" in capsys.readouterr().out
    assert config.read_text() != "damaged"

    # The other network, in the same precision.
    engine.main(model=two, repository=repository)
    second = record(repository)
    assert second["version"] != first["version"]
    assert (second["precision"], second["choice"]["precision"]) == ("fp32", "fp32")

    # Another choice that comes to the same engine is kept, and nothing is built for it.
    engine.main(target="openvino", precision="fp32", repository=repository)
    assert "up to date" in capsys.readouterr().out
    third = record(repository)
    assert third["choice"] == {**second["choice"], "target": "openvino"}
    assert {**third, "choice": None} == {**second, "choice": None}

    shutil.rmtree(two)
    with pytest.raises(SystemExit):
        engine.main(repository=repository)
    assert f"built from {two}, which is gone" in " ".join(capsys.readouterr().out.split())
    assert record(repository) == third


def test_another_target_or_precision_starts_from_its_own_defaults() -> None:
    options = PlanOptions(optimum_batch=4)
    plan = Choice(target="tensorrt", options=options)
    assert plan.with_() == plan
    assert plan.with_(cuda_graphs=True).options == PlanOptions(optimum_batch=4, cuda_graphs=True)
    assert plan.with_(precision="int8") == Choice(precision="int8")
    assert Choice(precision="int8").with_(target="tensorrt") == Choice(target="tensorrt")
    with pytest.raises(ValueError, match="FRONTEND=x"):
        plan.with_(frontend="x")


def test_a_choice_comes_back_from_its_record(tmp_path: Path) -> None:
    chosen = Choice(tmp_path, options=PlanOptions(compute_capabilities=("8.6", "8.9")))
    assert chosen.record()["gallery"] == "demo"  # The checkout may move.
    (tmp_path / "1").mkdir()
    file = tmp_path / "1/engine.json"
    file.write_text(json.dumps({"choice": chosen.record()}))
    assert Choice.installed(tmp_path) == chosen
    for damaged in ({}, {"choice": None}, {"choice": {**chosen.record(), "options": {"x": 1}}}):
        file.write_text(json.dumps(damaged))
        assert Choice.installed(tmp_path) is None


def test_a_folder_that_is_gone_need_not_be_named_twice(tmp_path: Path) -> None:
    gone = Choice(model=tmp_path / "gone")
    with pytest.raises(BuildError, match=r"gone; name another folder with MODEL=\.\.\."):
        gone.with_(precision="fp32")
    assert gone.with_(model=tmp_path).model == tmp_path


def test_make_passes_on_what_is_given_and_nothing_else(root: Path) -> None:
    def command(target: str, *variables: str) -> str:
        make = ["make", "--dry-run", "--silent", target, *variables]
        told = subprocess.run(make, cwd=root, capture_output=True, text=True, check=True)
        (line,) = [line for line in told.stdout.replace("\\\n", "").splitlines() if
                   "build/engine.py" in line]  # fmt: skip
        return " ".join(line.split())

    bare = ".venv/bin/python build/engine.py"
    assert command("engine") == command("demo") == command("load") == command("tune") == bare
    given = ["MODEL=out/se", "PRECISION=int8", "TARGET=openvino", "PREFIX=v2-"]
    assert command("engine", *given) == (
        f'{bare} --model "out/se" --target "openvino" --precision "int8" --prefix "v2-"'
    )
