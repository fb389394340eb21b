"""`make evaluate` from end to end on a small made-up manifest, embedders included."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made_up_shop import SIDE, write_shop
from typer.testing import CliRunner

from unified_embedding.datasets import made_up
from unified_embedding.datasets.manifest import read_manifest, write_manifest
from unified_embedding.errors import DataError
from unified_embedding.evaluation import embedders, experiments, rotations
from unified_embedding.evaluation.config import load_config
from unified_embedding.evaluation.embedders import LocalEmbedder, open_embedder
from unified_embedding.image import Preprocessing
from unified_embedding.training import checkpoint
from unified_embedding.training.checkpoint import EmbedderRecipe
from unified_embedding.training.model import calibrate_batch_norm

RECIPE = EmbedderRecipe(
    trunk="resnet10t",
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
    layer_norm=True,
    fixed_map=False,
    preprocessing=Preprocessing(size=SIDE),
    weights="made up",
    license="Apache-2.0",
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, a run, the same run with shuffled weights, and a config."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    torch.manual_seed(0)
    model = RECIPE.build()
    calibrate_batch_norm(model, torch.from_numpy(made_up.pixels(16, SIDE)))
    summary = {"tasks": ["browse", "camera", "shop"], "steps": 7, "trunk_steps": 5, "batch": 24}
    state = model.state_dict()
    checkpoint.save(checkpoint.embedder_values(RECIPE, state, summary), folder / "best.pt")
    shuffled = {name: _shuffled(name, tensor) for name, tensor in state.items()}
    checkpoint.save(checkpoint.embedder_values(RECIPE, shuffled, summary), folder / "shuffled.pt")
    rows = [
        _row("start", folder / "best.pt", "zero-shot"),
        _row("shuffled", folder / "shuffled.pt", "unified", baseline="start", compared=True),
        _row("camera specialist", folder / "absent.pt", "specialist", task="camera"),
    ]
    last_layers = {
        "source": str(folder / "best.pt"),
        "dims": [64],
        "shares": [50, 100],
        "seeds": 2,
        "steps": 4,
        "batch": 6,
    }
    maps = {"rows": ["shuffled"], "bits": [512], "count": 8}
    config = {"rows": rows, "last_layers": last_layers, "rotations": maps}
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(config))
    return folder


def _row(name: str, source: Path, kind: str, **more: object) -> dict[str, object]:
    return {"name": name, "source": str(source), "kind": kind, **more}


def _shuffled(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The same values in another order, in every convolution."""
    if tensor.ndim != 4:
        return tensor
    order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(1))
    return tensor.flatten()[order].reshape(tensor.shape)


def invoke(*arguments: str) -> tuple[int, str]:
    import typer

    from unified_embedding.evaluation import evaluate

    app = typer.Typer()
    app.command()(evaluate.main)
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, result.output


def run(shop: Path, *options: str) -> tuple[int, str]:
    fixed = ["--manifest", str(shop / "manifest.csv"), "--cache", str(shop / "cache")]
    fixed += ["--out", str(shop / "docs"), "--threads", "1"]
    return invoke(str(shop / "evaluate.yaml"), *fixed, *options)


@pytest.fixture(scope="module")
def first_run(shop: Path) -> str:
    code, output = run(shop)
    assert code == 0, output
    return (shop / "docs" / "results.md").read_text()


def figures(page: str, name: str) -> list[str]:
    """The float line of a row of the main table."""
    table = page.split("## The table")[1]
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[6:-1]]


def test_the_page_holds_every_row_and_says_what_was_not_run(shop: Path, first_run: str) -> None:
    start = figures(first_run, "start")
    assert len(start) == 7
    assert all(0 <= float(cell) <= 100 for cell in start)
    assert figures(first_run, "camera specialist") == ["not run"] * 7
    assert "images seen" in first_run
    assert "| 120 (40 per task) |" in first_run  # two of the seven steps moved proxies alone
    assert "50 %" in first_run
    assert "| shuffled | 512 | code |" in first_run
    assert "Mean over 8 random maps" in first_run
    assert "**not tested**" in first_run
    for name in ("overview", "dimension", "subsampling"):
        assert (shop / "docs" / "images" / f"results-{name}.png").stat().st_size > 10_000
        assert f"images/results-{name}.png" in first_run


def test_the_same_figures_are_written_for_programs(shop: Path, first_run: str) -> None:
    found = json.loads((shop / "docs" / "results.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert not rows["camera specialist"]["run"]
    by_name = {(f["task"], f["metric"], f["comparison"]): f for f in rows["start"]["figures"]}
    figure = by_name["shop exact", "R@1", "float"]
    assert f"{100 * figure['mean']:.1f}" == figures(first_run, "start")[3]
    assert figure["low"] <= figure["mean"] <= figure["high"]
    assert found["test_set"]["digest"] in first_run


def test_shuffled_weights_change_the_row(first_run: str) -> None:
    assert figures(first_run, "shuffled") != figures(first_run, "start")
    assert "shuffled minus start: shop exact R@1" in first_run


def test_the_second_run_loads_no_network_and_trains_nothing(
    shop: Path, first_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("cached, so nothing is to be computed")

    monkeypatch.setattr(embedders, "on_onnxruntime", refuse)
    monkeypatch.setattr(experiments, "fit", refuse)
    monkeypatch.setattr(rotations, "rotate", refuse)
    code, output = run(shop)
    assert code == 0, output
    assert (shop / "docs" / "results.md").read_text() == first_run


def test_fresh_computes_the_same_again(shop: Path, first_run: str) -> None:
    embedder = open_embedder(str(shop / "best.pt"), 1)
    folder = shop / "cache" / "features" / str(embedder.id)
    (shard,) = folder.glob("*.npz")
    before, made = np.load(shard)["rows"], shard.stat().st_mtime_ns
    code, output = run(shop, "--fresh", "--only", "start")
    assert code == 0, output
    assert figures(first_run, "start")[0] in output
    assert shard.stat().st_mtime_ns > made
    assert np.array_equal(np.load(shard)["rows"], before)


def test_one_row_alone_writes_no_page(shop: Path, first_run: str) -> None:
    page = shop / "docs" / "results.md"
    page.unlink()
    code, output = run(shop, "--only", "start")
    assert code == 0, output
    assert figures(first_run, "start")[0] in output
    assert "shuffled" not in output
    assert not page.exists()
    assert "no row is called 'strat'" in " ".join(run(shop, "--only", "strat")[1].split())


def test_a_changed_query_stops_the_evaluation(shop: Path, first_run: str) -> None:
    path = shop / "shots/9-1.png"
    data = path.read_bytes()
    try:
        path.write_bytes((shop / "shots/8-1.png").read_bytes())
        code, output = run(shop)
    finally:
        path.write_bytes(data)
    assert code == 1
    assert "1 changed (shots/9-1.png)" in " ".join(output.split())
    assert run(shop, "--only", "start")[0] == 0
    code, output = run(shop, "--only", "start", "--frozen", "0123456789ab")
    assert code == 1
    assert "0123456789ab" in output


def test_the_graph_of_a_checkpoint_is_the_torch_model(shop: Path) -> None:
    images = [(shop / f"catalogue/{number}.png").read_bytes() for number in range(3)]
    opened = open_embedder(str(shop / "best.pt"), 1)
    assert isinstance(opened, LocalEmbedder)
    model, recipe, _ = checkpoint.load_embedder(shop / "best.pt")
    pixels = np.stack([embedders.load_pixels(image, recipe.preprocessing) for image in images])
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
        pooled = model.pooled(torch.from_numpy(pixels)).numpy()
    assert np.allclose(opened.embed(images), expected, atol=1e-4)
    unnormalised = open_embedder(str(shop / "best.pt"), 1, layer_norm=False)
    assert np.allclose(unnormalised.embed(images), pooled, atol=1e-4)
    assert opened.facts["images_seen"] == 5 * 24
    ids = {opened.id, unnormalised.id, open_embedder(str(shop / "shuffled.pt"), 1).id}
    assert len(ids) == 3
    assert opened.id == open_embedder(str(shop / "best.pt"), 1).id


def test_ones_own_manifest_needs_a_folder_and_no_digest(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/evaluate.md says, with the digest that the shipped configuration publishes."""
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    rows = [row for row in read_manifest(tmp_path / "manifest.csv") if row["split"] == "test"]
    write_manifest(tmp_path / "manifest.csv", rows)
    config = yaml.safe_load((shop / "evaluate.yaml").read_text())
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({**config, "frozen": "3772ed6ab24b"}))
    own = ["e.yaml", "--manifest", "manifest.csv", "--cache", "cache", "--threads", "1"]
    code, output = invoke(*own)
    assert code == 1
    assert "give --out DIR" in " ".join(output.split())
    assert not (tmp_path / "docs").exists()
    code, output = invoke(*own, "--out", "mine")
    assert code == 0, output
    page = (tmp_path / "mine" / "results.md").read_text()
    command = "evaluation e.yaml --manifest manifest.csv --out mine`"
    assert f"Written by `python -m unified_embedding.{command}" in page
    assert "last layers: not run, the manifest has no training rows" in output
    code, output = invoke(*own, "--only", "start", "--frozen", "3772ed6ab24b")
    assert code == 1
    assert "measured on 3772ed6ab24b" in " ".join(output.split())


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not an embedder"):
        open_embedder(str(tmp_path))
    with pytest.raises(DataError, match="input side in pixels"):
        open_embedder("trunk:resnet10t@big")
    with pytest.raises(DataError, match="no pretrained weights"):
        open_embedder("trunk:resnet10t@64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["rows"].append(dict(c["rows"][0])), "rows need different names"),
        (lambda c: c["rows"][1].update(baseline="strat"), "'strat' is not a zero-shot row"),
        (lambda c: c["rows"][0].update(task="camera"), "a specialist, and only that"),
        (lambda c: c["rows"][0].update(compared=True), "at most one row"),
        (lambda c: c.update(rwos=[]), "rwos: Extra inputs"),
        (lambda c: c["rotations"].update(rows=["strat"]), r"rotations: no row is called .*strat"),
        (lambda c: c["rotations"].update(count=7), "rotations.count: .*greater than or equal to 8"),
        (lambda c: c["last_layers"].update(dims=[63]), "last_layers.dims.0: .*multiple of 8"),
    ],
)
def test_a_wrong_configuration_is_named(
    shop: Path, tmp_path: Path, change: Callable[[dict], None], message: str
) -> None:
    raw = yaml.safe_load((shop / "evaluate.yaml").read_text())
    change(raw)
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(DataError, match=message):
        load_config(path)


def test_the_shipped_configuration_is_read(root: Path) -> None:
    config = load_config(root / "configs" / "evaluate.yaml")
    compared = config.compared()
    assert compared is not None
    assert config.replaced() == [compared] * 3
    last_layers = load_config(root / "configs" / "last-layers.yaml").last_layers
    assert last_layers is not None
    assert last_layers.shares == [5, 10, 25, 100]
    assert last_layers.seeds == 3
    assert config.rotations is not None
    assert config.rotations.bits == [1280, 2048]
    assert config.rotations.count >= 8


def test_the_frozen_list_names_every_picture_once(shop: Path, first_run: str) -> None:
    with (shop / "manifest.frozen.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = [row["image"] for row in rows]
    assert images == sorted(set(images))
    assert all(len(row["sha256"]) == 64 for row in rows)
