"""Evaluation through the running server and through an installed engine."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from unified_embedding.datasets.manifest import COLUMNS, write_manifest
from unified_embedding.gallery import Gallery
from unified_embedding.serving.local_server import start

pytest.importorskip("torch", reason="the extra `train` is missing")
client = pytest.importorskip("unified_embedding.client", reason="the extra `client` is missing")

evaluate = pytest.importorskip("unified_embedding.evaluation.evaluate")

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def shop(root: Path, gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo gallery as a test set: its first shots are camera's, its second ones shop's."""
    folder = tmp_path_factory.mktemp("shop")
    for name in ("catalogue", "shots"):
        shutil.copytree(root / "demo" / name, folder / name)
    with (root / "demo" / "gallery.csv").open(newline="") as file:
        categories = {row["image"]: row["category"] for row in csv.DictReader(file)}
    rows = []
    for picture in gallery.pictures:
        image = str(picture.path.relative_to(gallery.folder))
        common = {"image": image, "identity": picture.product, "split": "test"}
        camera = {"task": "camera", "camera_category": categories[image]}
        shop = {"task": "shop", "shop_instance": picture.product}
        if picture.role == "catalogue":
            rows += [{**common, **labels, "domain": "catalogue"} for labels in (camera, shop)]
        elif image.endswith("-1.jpg"):
            rows.append({**common, **camera, "domain": "shot"})
        else:
            rows.append({**common, **shop, "domain": "scene"})
    write_manifest(folder / "manifest.csv", [{c: row.get(c, "") for c in COLUMNS} for row in rows])
    released = {"name": "released", "source": str(root / "models" / "unified-embedder-lite0")}
    config = {"rows": [{**released, "kind": "zero-shot"}]}
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def fp32(root: Path, server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that computes in fp32, whatever this processor would choose."""
    if server.engine.startswith("openvino-fp32-"):
        yield server.grpc_url
        return
    folder = tmp_path_factory.mktemp("fp32") / "model_repository"
    for name in ("unified_embedding", "preprocess", "binarizer"):
        shutil.copytree(root / "model_repository" / name, folder / name)
    command = [sys.executable, root / "build" / "engine.py", "--repository", folder]
    command += ["--model", root / "models" / "unified-embedder-lite0", "--precision", "fp32"]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    own = start(folder, folder.parent / "log")
    yield own.grpc_url
    assert own.stop() == 0


def compare(shop: Path, source: str, *options: str) -> dict[str, object]:
    app = typer.Typer()
    app.command()(evaluate.main)
    command = [str(shop / "evaluate.yaml"), "--manifest", str(shop / "manifest.csv")]
    command += ["--cache", str(shop / "cache"), "--compare", source, *options]
    run = CliRunner(env={"COLUMNS": "200"}).invoke(app, command, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert "same top result" in run.output
    files = list((shop / "cache" / "agreements").glob("*.json"))
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    found: dict[str, object] = json.loads(newest.read_text())
    assert found["engine"] in run.output
    return found


def test_a_server_in_fp32_agrees_within_one_query(shop: Path, fp32: str) -> None:
    found = compare(shop, f"server:{fp32}")
    assert found["row"] == "released"
    assert found["engine"].startswith("openvino-fp32-")
    assert found["queries"] >= 5 * 120
    assert all(abs(moved[3]) <= 1 for moved in found["worst"].values()), found
    assert all(share >= 0.995 for share in found["same_first"].values()), found


def test_back_fill_index_and_server_together_agree_within_a_point(shop: Path, fp32: str) -> None:
    pytest.importorskip("faiss", reason="the extra `search` is not installed")
    found = compare(shop, f"backfill:{fp32}")
    assert found["engine"].startswith("openvino-fp32-")
    assert found["engine"].endswith("-through-index")
    assert found["queries"] >= 5 * 120
    # 120 queries a task: a point is 1.2 of them. Embeddings are stored in float16.
    assert all(abs(moved[2]) <= 0.01 for moved in found["worst"].values()), found
    assert all(share >= 0.99 for share in found["same_first"].values()), found


def test_the_installed_engine_answers_as_the_server_does(
    shop: Path, gallery: Gallery, server
) -> None:
    from unified_embedding.evaluation.embedders import open_embedder

    images = [picture.path.read_bytes() for picture in gallery.pictures[:24]]
    engine = open_embedder(str(server.repository / "embedder"))
    served = open_embedder(f"server:{server.grpc_url}")
    assert engine.id == server.engine
    assert served.facts["engine"] == server.engine
    assert np.array_equal(engine.embed(images), served.embed(images))
    served.close()


def test_the_default_engine_keeps_the_figures(shop: Path, server) -> None:
    found = compare(shop, str(server.repository / "embedder"), "--against", "released")
    assert found["engine"] == server.engine
    # 120 queries a task: a point is 1.2 of them, and bf16 may move a few either way.
    assert all(abs(moved[2]) <= 0.04 for moved in found["worst"].values()), found
    assert all(share >= 0.75 for share in found["same_first"].values()), found


def test_a_server_that_is_not_there_is_named(shop: Path) -> None:
    command = [sys.executable, "-m", "unified_embedding.evaluation"]
    command += [str(shop / "evaluate.yaml"), "--manifest", str(shop / "manifest.csv")]
    command += ["--cache", str(shop / "cache"), "--compare", "server:127.0.0.1:9"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "127.0.0.1:9" in run.stderr
