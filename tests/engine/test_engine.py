"""`make engine` as its users run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `build` is not installed")
pytest.importorskip("openvino", reason="the extra `build` is not installed")

MODEL = "models/unified-embedder-lite0"


def engine(root: Path, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "build/engine.py", "--repository", str(repository), *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("engine") / "model_repository"
    repository.mkdir()
    run = engine(root, repository, "--model", MODEL, "--precision", "fp32")
    assert run.returncode == 0, run.stdout
    return repository


def test_the_installed_engine_describes_itself(root: Path, installed: Path) -> None:
    record = json.loads((installed / "embedder/1/engine.json").read_text())
    spec = json.loads((root / MODEL / "spec.json").read_text())
    assert record["version"] == spec["version"]
    assert record["engine"].startswith("openvino-fp32-")
    assert record["gates"]["meaningful"] is True
    assert record["gates"]["figures"]["flips_mean"] <= 0.0001
    assert set(record["files"]) == {
        "config.pbtxt", "1/model.xml", "1/model.bin", "1/model.py", "1/spec.json",
    }  # fmt: skip
    assert [path.name for path in installed.parent.iterdir()] == ["model_repository"]


def test_a_second_run_does_nothing(root: Path, installed: Path) -> None:
    before = snapshot(installed)
    run = engine(root, installed, "--model", MODEL, "--precision", "fp32")
    assert run.returncode == 0
    assert "up to date" in run.stdout
    assert snapshot(installed) == before


def test_a_damaged_engine_is_rebuilt(root: Path, installed: Path) -> None:
    (installed / "embedder/1/model.bin").write_bytes(b"damaged")
    assert engine(root, installed, "--model", MODEL, "--precision", "fp32").returncode == 0
    assert (installed / "embedder/1/model.bin").stat().st_size > 10_000_000


def test_a_failed_gate_leaves_the_old_engine(
    root: Path, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unified_embedding.engine import building as build_step
    from unified_embedding.engine.openvino.target import OpenVinoTarget
    from unified_embedding.errors import BuildError
    from unified_embedding.gallery import Gallery

    class Noisy(OpenVinoTarget):
        def runner(self, folder: Path):  # type: ignore[no-untyped-def]
            run = super().runner(folder)
            return lambda pixels: run(pixels) + np.float32(0.01) * np.arange(1280, dtype=np.float32)

        def inputs(self) -> dict[str, str]:
            return {"openvino": "a version with a defect"}

    before = snapshot(installed)
    with pytest.raises(BuildError, match="a gate failed"):
        build_step.build(root / MODEL, Noisy("fp32"), installed, Gallery.load(root / "demo"))
    assert snapshot(installed) == before
    assert "worst cosine 0." in capsys.readouterr().out
    assert [path.name for path in installed.parent.iterdir()] == ["model_repository"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target", "coreml"], "TARGET=coreml is unknown"),
        (["--precision", "fp8"], "PRECISION=fp8"),
        (["--model", "models/nothing"], "models/nothing/spec.json does not exist"),
        (["--gallery", "docs"], "gallery.csv cannot be read"),
    ],
)
def test_bad_settings_are_named(
    root: Path, installed: Path, arguments: list[str], reason: str
) -> None:
    before = snapshot(installed)
    model = [] if "--model" in arguments else ["--model", MODEL]
    run = engine(root, installed, *model, *arguments)
    assert run.returncode == 1
    assert reason in " ".join(run.stdout.split())
    assert snapshot(installed) == before
