"""Backward-compatible training: the influence loss, its old classifier, and what it achieves."""

from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from small_runs import run, trainer_in
from typer.testing import CliRunner

from unified_embedding.datasets import made_up
from unified_embedding.errors import SpecError, TrainingError
from unified_embedding.evaluation.embedders import Embedder, open_embedder
from unified_embedding.export.export import declared, from_checkpoint, write
from unified_embedding.export.export import main as export_command
from unified_embedding.image import Preprocessing
from unified_embedding.origin import Origin
from unified_embedding.spec import EmbedderSpec
from unified_embedding.training.compatible import CACHE
from unified_embedding.training.model import FixedMap
from unified_embedding.training.subsampler import UNLABELLED, sample_classes
from unified_embedding.training.trainer import Trainer
from unified_embedding.training.validation import embed

SETTINGS = "schedule: {heads: {steps: 1}, full: {steps: 4}, decay: constant}"


def make(folder: Path, *overrides: str) -> Trainer:
    return trainer_in(folder, "", SETTINGS, *overrides)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """last.pt of a run that knows two classes of each column fewer."""
    folder = tmp_path_factory.mktemp("old")
    trainer = make(folder, "seed=5", "data.made_up.browse_class=4", "data.made_up.shop_instance=6")
    run(trainer, 5)
    trainer.close()
    return trainer.save()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder with a fixed map, exported from a run."""
    folder = tmp_path_factory.mktemp("released")
    trainer = make(folder, "seed=6", "model.fixed_map=true", "model.rotation_seed=3")
    run(trainer, 3)
    trainer.close()
    exportable, preprocessing = from_checkpoint(trainer.save())
    pixels = made_up.pixels(4, preprocessing.size)
    write(exportable, folder / "model", "old", preprocessing, pixels, "made-up pictures")
    return folder / "model"


def unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    rows = rows.astype(np.float64)
    found: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def by_hand(
    embedding: NDArray[np.float32], rows: NDArray[np.float32], labels: NDArray[np.int64], t: float
) -> float:
    """Mean over labelled pictures of -log softmax of cosine / t at the label."""
    logits = unit(embedding) @ unit(rows).T / t
    losses = [
        np.log(np.exp(line - line.max()).sum()) + line.max() - line[label]
        for line, label in zip(logits, labels, strict=True)
        if label != UNLABELLED
    ]
    return float(np.mean(losses))


def test_the_influence_loss_is_the_old_classifier_on_the_new_embedding(
    old: Path, tmp_path: Path
) -> None:
    trainer = make(tmp_path, f"compatible_with={old}", "sampled.shop_instance=6",
                   "heads.shop_class.temperature=0.2")  # fmt: skip
    assert trainer.influence is not None
    rows = trainer.plan.batch_rows(0)
    labels = [trainer.numbers[head.column][rows] for head in trainer.heads]
    vectors = np.random.default_rng(0).standard_normal((12, trainer.model.dim)).astype(np.float32)
    embedding = torch.from_numpy(vectors)
    shares = trainer.influence.losses(embedding, labels, trainer.slots, 0)
    for head, numbers, share in zip(trainer.heads, labels, shares, strict=True):
        classifier, targets = trainer.influence.rows[head.column].numpy(), numbers
        assert np.allclose(np.linalg.norm(classifier, axis=1), 1, atol=1e-5)
        if head.column == "shop_instance":
            drawn = sample_classes(numbers, 8, 6, (0, 0))
            classifier, place = classifier[drawn], {n: i for i, n in enumerate(drawn.tolist())}
            targets = np.array([place.get(n, UNLABELLED) for n in numbers.tolist()])
        expected = by_hand(vectors, classifier, targets, head.criterion.temperature)
        assert share.item() == pytest.approx(expected, rel=1e-4)
    trainer.close()


def test_it_enters_the_sum_with_its_weight_and_is_reported(old: Path, tmp_path: Path) -> None:
    plain, light, heavy = (
        make(tmp_path / name, "schedule.heads.steps=0", "schedule.rate=0.001",
             "schedule.momentum=0", "schedule.weight_decay=0", *more)
        for name, more in (
            ("plain", []),
            ("light", [f"compatible_with={old}"]),
            ("heavy", [f"compatible_with={{old: '{old}', weight: 3}}"]),
        )
    )  # fmt: skip
    columns = [head.column for head in plain.heads]
    assert light.loss_names == [*columns, *(f"old_{column}" for column in columns)]
    before = {name: p.detach().clone() for name, p in plain.model.named_parameters()}
    losses = [run(trainer, 1)[0] for trainer in (plain, light, heavy)]
    assert losses[1][: len(columns)] == losses[0]
    assert losses[2] == losses[1]  # reported as they are, without the weight
    for name, start in before.items():
        moved = [dict(t.model.named_parameters())[name] - start for t in (plain, light, heavy)]
        by_light, by_heavy = moved[1] - moved[0], moved[2] - moved[0]
        torch.testing.assert_close(by_heavy, 3 * by_light, rtol=1e-2, atol=1e-6)
    for trainer in (plain, light, heavy):
        trainer.close()


def test_its_gradient_reaches_the_trunk_and_never_the_old_proxies(
    old: Path, tmp_path: Path
) -> None:
    trainer = make(tmp_path, f"compatible_with={old}")
    assert trainer.influence is not None
    before = {column: rows.clone() for column, rows in trainer.influence.rows.items()}
    proxies = [head.state()["rows"].clone() for head in trainer.heads]
    rows = trainer.plan.batch_rows(0)
    labels = [trainer.numbers[head.column][rows] for head in trainer.heads]
    embedding = trainer.model(next(trainer.pixels())).float()
    shares = trainer.influence.losses(embedding, labels, trainer.slots, 0)
    torch.stack(shares).sum().backward()  # type: ignore[no-untyped-call]
    first = next(trainer.model.parameters()).grad
    assert first is not None
    assert first.any()
    for head, start in zip(trainer.heads, proxies, strict=True):
        assert torch.equal(head.state()["rows"], start)
        assert head.state()["rows"].grad is None
    trainer.optimizer.zero_grad()
    run(trainer, 4)
    for column, found in trainer.influence.rows.items():
        assert found.grad is None
        assert not found.requires_grad
        assert torch.equal(found, before[column])
    trainer.close()


def means(embedder: Embedder, trainer: Trainer, column: str) -> dict[str, NDArray[np.float64]]:
    """Class -> unit mean of the unit embeddings of its training pictures, by the evaluation."""
    examples = trainer.examples
    labels = examples.labels[column]
    rows = np.flatnonzero(labels != "")
    images = [examples.read(examples.images[row]) for row in rows]
    vectors = unit(embedder.embed(images))
    return {
        name: unit(vectors[labels[rows] == name].mean(axis=0, keepdims=True))[0]
        for name in np.unique(labels[rows]).tolist()
    }


def test_a_run_gives_its_proxies_and_class_means_of_what_it_does_not_know(
    old: Path, tmp_path: Path
) -> None:
    trainer = make(tmp_path, f"compatible_with={old}")
    assert trainer.influence is not None
    saved = torch.load(old, weights_only=True)
    embedder = open_embedder(str(old), threads=1)
    for column, names in trainer.classes.items():
        expected = means(embedder, trainer, column)
        theirs = saved["classes"][column]
        unknown = [name for name in names if name not in theirs]
        assert bool(unknown) == (column in ("browse_class", "shop_instance"))
        for name, row in zip(names, trainer.influence.rows[column].numpy(), strict=True):
            if name in theirs:
                proxy = saved["heads"][column]["rows"][theirs.index(name)].numpy()
                expected[name] = unit(proxy[None])[0]
            np.testing.assert_allclose(row, expected[name], atol=1e-4)
    trainer.close()


def test_a_released_folder_gives_class_means_and_its_fixed_map(
    released: Path, tmp_path: Path
) -> None:
    trainer = make(tmp_path, f"compatible_with={released}", "model.fixed_map=true", "seed=6")
    assert trainer.influence is not None
    embedder = open_embedder(str(released), threads=1)
    for column, names in trainer.classes.items():
        expected = means(embedder, trainer, column)
        for name, row in zip(names, trainer.influence.rows[column].numpy(), strict=True):
            np.testing.assert_allclose(row, expected[name], atol=1e-4)
    theirs = torch.load(released.parent / "last.pt", weights_only=True)["embedder"]
    assert isinstance(trainer.model.fixed_map, FixedMap)
    assert torch.equal(trainer.model.fixed_map.rotation, theirs["fixed_map.rotation"])
    assert torch.equal(trainer.model.fixed_map.mean, theirs["fixed_map.mean"])
    trainer.close()


def test_a_run_resumes_bit_for_bit_and_embeds_nothing_again(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"compatible_with={released}", "model.fixed_map=true", "seed=1"]
    whole = make(tmp_path / "whole", *overrides)
    run(whole, 5)
    cut = make(tmp_path / "cut", *overrides)
    run(cut, 3)
    cut.save()
    cut.close()

    def nothing(*_: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr("unified_embedding.training.class_means.embed", nothing)
    again = make(tmp_path / "cut", *overrides)
    assert again.resume()
    run(again, 2)
    assert again.fingerprint() == whole.fingerprint()
    # A damaged file is no classifier, and neither is one of other pictures.
    path = tmp_path / "cut" / CACHE
    stored = path.read_bytes()
    path.write_bytes(stored[: len(stored) // 2])
    with pytest.raises(AssertionError, match="embedded again"):
        make(tmp_path / "cut", *overrides)
    path.write_bytes(stored)
    with pytest.raises(AssertionError, match="embedded again"):
        make(tmp_path / "cut", *overrides, "data.made_up.per_class=2")
    for trainer in (whole, again):
        trainer.close()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.trunk=resnet50"], "has embeddings of width 512, this trunk of 2048"),
        (["model.fixed_map=true"], "has no fixed map .*set model.fixed_map=false"),
        (["compatible_with=models/nothing"], "'models/nothing' is no embedder: give a released"),
        (["compatible_with=nothing.pt"], "nothing.pt does not exist"),
        (["gradnorm={layer: layer4}"], "compatible_with and gradnorm do not go together"),
        (["model.layer_norm=false"], "compatible_with needs model.layer_norm"),
        (["compatible_with={weight: 2}"], "compatible_with.old: Field required"),
    ],
)
def test_what_does_not_fit_is_named(
    old: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        make(tmp_path, f"compatible_with={old}", *overrides)


def test_a_fixed_map_is_asked_for_and_a_run_without_layer_norm_has_no_index(
    released: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"has a fixed map .*set model.fixed_map=true"):
        make(tmp_path / "new", f"compatible_with={released}")
    plain = make(tmp_path / "plain", "model.layer_norm=false")
    plain.close()
    with pytest.raises(TrainingError, match="without LayerNorm"):
        make(tmp_path / "new", f"compatible_with={plain.save()}")


def test_another_old_embedder_at_the_same_path_and_another_map_are_refused(
    old: Path, released: Path, tmp_path: Path
) -> None:
    path = tmp_path / "old.pt"
    path.write_bytes(old.read_bytes())
    first = make(tmp_path / "new", f"compatible_with={path}")
    run(first, 1)
    first.save()
    first.close()
    another = make(tmp_path / "another", "seed=7")
    another.close()
    path.write_bytes(another.save().read_bytes())
    changed = make(tmp_path / "new", f"compatible_with={path}")
    with pytest.raises(TrainingError, match=r"trained against another embedder than .*old.pt"):
        changed.resume()
    changed.close()

    mapped = make(tmp_path / "mapped", "model.fixed_map=true", "model.rotation_seed=9")
    mapped.close()
    begun = make(tmp_path / "begun", f"compatible_with={released}", "model.fixed_map=true")
    with pytest.raises(TrainingError, match=r"another fixed map than compatible_with.s"):
        begun.start_from(mapped.save())
    begun.close()


def export(*arguments: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(export_command)
    result = CliRunner(env={"COLUMNS": "500"}).invoke(app, [str(one) for one in arguments])
    return result.exit_code, " ".join(result.output.split())


def test_an_export_declares_what_the_run_was_trained_against_and_nothing_else(
    old: Path, released: Path, tmp_path: Path
) -> None:
    new = make(tmp_path / "new", f"compatible_with={released}", "model.fixed_map=true")
    second = make(tmp_path / "second", f"compatible_with={old}")
    for trainer in (new, second):
        trainer.save()
        trainer.save_best()
        trainer.close()
    to = tmp_path / "of old"
    pixels = made_up.pixels(4, 32)
    old_version = write(from_checkpoint(old)[0], to, "old", Preprocessing(32), pixels, "")[
        0
    ].version
    assert from_checkpoint(new.run / "best.pt")[0].compatible_with == ()  # never by itself

    version = EmbedderSpec.load(released).version
    code, output = export("--checkpoint", new.run / "best.pt", "--out", tmp_path / "out",
                          "--compatible-with", released)  # fmt: skip
    assert code == 0, output
    spec = EmbedderSpec.load(tmp_path / "out")
    assert spec.compatible_with == (version,)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"may search stored codes of `{version}`" in card
    assert f"against the embedder `{version}`" in " ".join(card.split())
    new_origin = Origin(spec.version, "any", spec.compatible_with)
    assert new_origin.may_search(version)
    assert not new_origin.may_search(old_version)
    assert not Origin(version, "any").may_search(spec.version)

    # Trained against a run, whose export has the version.
    assert declared(second.run / "last.pt", to) == old_version
    for checkpoint, folder, message in (
        (second.run / "last.pt", released, "is another embedder; name the folder of that one"),
        (new.run / "last.pt", to, "is another embedder; name the folder of that one"),
        (old, released, "was not trained to be compatible with another embedder"),
    ):
        with pytest.raises(SpecError, match=message):
            declared(checkpoint, folder)
    code, output = export("--out", tmp_path / "none", "--compatible-with", released)
    assert code == 1
    assert "--compatible-with needs --checkpoint" in output
    assert not (tmp_path / "none").exists()


def held_out_vectors(trainer: Trainer) -> NDArray[np.float32]:
    rows = np.arange(len(trainer.held_out))
    return embed(trainer.model.eval(), trainer.held_out, rows, trainer.preprocessing,
                 torch.device("cpu"))  # fmt: skip


def found_again(
    queries: NDArray[np.float32], index: NDArray[np.float32], labels: NDArray[np.str_]
) -> float:
    """R@1 of every picture's query among the other pictures."""
    near = queries @ index.T
    np.fill_diagonal(near, -np.inf)
    return float((labels[near.argmax(axis=1)] == labels).mean())


def test_new_queries_find_the_old_index_and_an_independent_models_do_not(tmp_path: Path) -> None:
    """Random weights of different seeds share nothing that only training could connect."""
    made = "browse_class: 24, camera_category: 0, shop_class: 0, shop_instance: 0, per_class: 6"
    settings = [f"data.made_up={{{made}}}", "data.tasks=[browse]", "data.labels=[browse_class]",
                "data.color=0", "batch=24", "schedule={heads: {steps: 0}, full: {steps: 60}, "
                "rate: 0.01, decay: cosine}"]  # fmt: skip
    old = make(tmp_path / "old", *settings, "seed=1")
    run(old, 60)
    free = make(tmp_path / "free", *settings, "seed=2")
    new = make(tmp_path / "new", *settings, "seed=2", f"compatible_with={old.save()}")
    run(free, 60)
    run(new, 60)
    labels = old.held_out.labels["browse_class"]
    vectors = [held_out_vectors(trainer) for trainer in (old, new, free)]
    for change in (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True), np.sign):
        own, compatible, independent = (
            found_again(change(queries), change(vectors[0]), labels) for queries in vectors
        )
        assert compatible > independent + 0.2
        assert compatible > own / 2
    for trainer in (old, free, new):
        trainer.close()
