"""A fourth task by one entry of a configuration: read, trained, validated, searched, reported."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_embedder
import yaml
from made_up_shop import write_shop
from typer.testing import CliRunner

from unified_embedding import onnx_file
from unified_embedding.datasets import made_up
from unified_embedding.datasets.manifest import columns_of, read_manifest, write_manifest
from unified_embedding.datasets.task_table import TASKS, TASKS_FILE, label_columns, tasks_beside
from unified_embedding.errors import DataError
from unified_embedding.evaluation import evaluate
from unified_embedding.protocols.held_out import held_out
from unified_embedding.protocols.measure import Cell, measure
from unified_embedding.protocols.tasks import build_tasks
from unified_embedding.training.config import load_config
from unified_embedding.training.distributed import ALONE
from unified_embedding.training.sampled_head import SampledHead
from unified_embedding.training.trainer import Trainer
from unified_embedding.training.validation import validate

ROOT = Path(__file__).parents[2]
FABRICS, KINDS, PHOTOS = 12, 3, 2


def documented() -> str:
    """The entry that docs/training.md shows."""
    text = (ROOT / "docs" / "training.md").read_text()
    found = re.search(r"```yaml\n# tasks.yaml\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up manifest of three tasks, and fabrics: a swatch and two photographs of each."""
    root = tmp_path_factory.mktemp("fabrics")
    rows = [dict(row) for row in read_manifest(write_shop(root))]
    (root / TASKS_FILE).write_text(documented())
    for number in range(FABRICS):
        split = "train" if number < 6 else "validation" if number < 8 else "test"
        for view in range(1 + PHOTOS):
            image = f"fabrics/{number}-{view}.png"
            (root / image).parent.mkdir(exist_ok=True)
            made_up.picture(300 + number, view, 32).save(root / image)
            rows.append(
                {
                    "image": image,
                    "task": "fabric",
                    "domain": "swatch" if view == 0 else "photo",
                    "split": split,
                    "fabric_weave": f"weave {number % KINDS}",
                    "fabric_article": f"article {number}",
                }
            )
    write_manifest(root / "manifest.csv", rows)
    return root


def test_the_manifest_gains_its_columns(folder: Path) -> None:
    tasks = tasks_beside(folder / "manifest.csv")
    assert list(tasks) == [*TASKS, "fabric"]
    rows = read_manifest(folder / "manifest.csv")
    assert tuple(rows[0]) == columns_of(tasks)
    assert sum(row["task"] == "fabric" for row in rows) == FABRICS * (1 + PHOTOS)
    rows[-1]["split"] = "train"  # the article's swatch stays in the test split
    write_manifest(folder / "other.csv", rows)
    with pytest.raises(DataError, match=r"fabric_article .*is in train here and in test"):
        read_manifest(folder / "other.csv")
    (folder / "other.csv").unlink()


def test_it_is_trained_and_validated_beside_the_others(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"run: {tmp_path / 'run'}\n"
        f"data: {{manifest: {folder / 'manifest.csv'}}}\n"
        "model: {trunk: resnet10t, weights: random}\npreprocessing: {size: 32}\nbatch: 16\n"
        "schedule: {heads: {steps: 1}, full: {steps: 2}, decay: constant}\n"
    )
    (tmp_path / "run").mkdir()
    loaded = load_config(config)
    assert loaded.data.tasks == [*TASKS, "fabric"]
    assert loaded.sampled == {"fabric_article": 4}
    assert load_config(config, ["sampled={}"]).sampled == {}
    changed = load_config(config, ["heads.fabric_weave.weight=3"]).heads["fabric_weave"]
    assert (changed.weight, changed.temperature) == (3, 0.1)
    trainer = Trainer(loaded, ALONE)
    try:
        heads = {head.column: head for head in trainer.heads}
        assert list(heads) == [*label_columns(TASKS), "fabric_weave", "fabric_article"]
        assert heads["fabric_weave"].criterion.temperature == 0.1
        assert heads["shop_class"].criterion.temperature == 0.05
        article = heads["fabric_article"]
        assert isinstance(article, SampledHead)
        assert article.softmax_classes == 4
        weights = dict(zip(heads, trainer.weights.tolist(), strict=True))
        assert weights["fabric_weave"] == 2
        assert weights["browse_class"] == 1
        before = {column: head.state()["rows"].clone() for column, head in heads.items()}
        pixels = trainer.pixels()
        losses = [trainer.run_step(next(pixels)).losses for _ in range(3)]
        assert np.isfinite(losses).all()
        for column, head in heads.items():
            assert not np.array_equal(head.state()["rows"], before[column]), column
        found = validate(
            trainer.model, trainer.held_out, trainer.preprocessing, trainer.rank.device, 100
        )
        assert set(found) == {*TASKS, "fabric"}
        assert found["fabric"].metric == "P@5"
    finally:
        trainer.close()


def test_its_searches_are_those_of_its_entry(folder: Path) -> None:
    tasks = tasks_beside(folder / "manifest.csv")
    pictures = held_out(read_manifest(folder / "manifest.csv"), folder, tasks)
    searches = {task.name: task for task in build_tasks(pictures)}
    exact, unseen = searches["fabric exact"], searches["fabric category, unseen"]
    assert exact.metrics == ("R@1", "R@3")
    assert unseen.metrics == ("P@5",)
    assert len(exact.queries()) == 4 * PHOTOS
    assert len(exact.searches[0].gallery) == FABRICS
    assert len(unseen.searches[0].gallery) == 6  # what training did not see
    vectors = np.random.default_rng(0).normal(size=(len(pictures), 64)).astype(np.float32)
    found = measure(pictures, vectors, [exact], ("float",))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    gallery = exact.searches[0].gallery
    hits = [
        pictures.labels["fabric"][gallery[np.argsort(-unit[gallery] @ unit[row])[:3]]].tolist()
        for row in exact.queries()
    ]
    wanted = [pictures.labels["fabric"][q] in h for q, h in zip(exact.queries(), hits, strict=True)]
    assert found.samples[Cell("fabric exact", "R@3", "float")].values.tolist() == wanted


def test_the_evaluation_reports_it(folder: Path, tmp_path: Path) -> None:
    import typer

    graph = tiny_embedder.tiny_embedder()
    onnx_file.save(graph, tiny_embedder.spec_of(graph), tmp_path)
    rows = [{"name": "tiny", "source": str(tmp_path), "kind": "unified"}]
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"rows": rows}))
    app = typer.Typer()
    app.command()(evaluate.main)
    where = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--threads", "1"]
    manifest = str(folder / "manifest.csv")
    result = CliRunner().invoke(app, [str(tmp_path / "e.yaml"), "--manifest", manifest, *where])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    figures = {(f["task"], f["metric"]) for f in found["rows"][0]["figures"]}
    assert {("fabric exact", "R@3"), ("fabric category, unseen", "P@5")} <= figures
    assert ("shop exact", "R@1") in figures


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("fabric: {}", "fabric: labels: Field required"),
        ("fabric: {labels: {weave: {}}}", "name the label column that is searched for"),
        ("fabric: {labels: {weave: {}}, instance: article}", "'article' is not one of its labels"),
        ("fabric: {labels: {weave: {k: 3}}, instance: weave}", "labels.weave.k: Extra inputs"),
        ("fabric: {labels: {split: {}}, instance: split}", "'split' is a column of every manifest"),
        ("fabric: {labels: {weave: {}}, instance: weave, metrics: [R@0]}", "metric 'R@0'"),
        ("fabric: {labels: {shop_class: {}}, instance: shop_class}", "label column of two tasks"),
        ("[fabric]", "does not hold tasks"),
        ("fabric: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: str, says: str) -> None:
    (tmp_path / TASKS_FILE).write_text(entry)
    with pytest.raises(DataError, match=re.escape(says)):
        tasks_beside(tmp_path / "manifest.csv")


def test_the_shipped_names_stand_in_the_table_alone() -> None:
    """No string of the code is a task's name, its label column or one of its searches."""
    searches = {
        text
        for task in TASKS.values()
        for text in (task.unseen, task.categories, task.exact, task.pairs, task.merged)
    }
    names = {*TASKS, *label_columns(TASKS), *searches}
    # The drawing of the published page has two captions with numbers of classes.
    captions = ROOT / "unified_embedding" / "evaluation" / "charts.py"
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value!r}"
        for room in ("datasets", "protocols", "training", "evaluation", "export")
        for path in sorted((ROOT / "unified_embedding" / room).rglob("*.py"))
        if path != captions
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert found == []
