"""The trainer in one process: stages, freezing, ablations, precision, continuing elsewhere."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from small_runs import run, trainer_in
from torch import Tensor
from torch.amp import GradScaler

from unified_embedding.errors import SpecError, TrainingError
from unified_embedding.export.export import from_checkpoint
from unified_embedding.training import checkpoint
from unified_embedding.training.assembly import _LOSSES, build_heads
from unified_embedding.training.config import LossName
from unified_embedding.training.distributed import Rank
from unified_embedding.training.losses import ArcFace, CosFace, NormalizedSoftmax, ProxyAnchor
from unified_embedding.training.model import FixedMap, batch_norms
from unified_embedding.training.trainer import Trainer

SETTINGS = """
sampled: {browse_class: 5}
schedule: {heads: {steps: 2}, full: {steps: 3}, decay: constant}
"""


def make(folder: Path, *overrides: str) -> Trainer:
    return trainer_in(folder, "run", SETTINGS, *overrides)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_the_first_stage_moves_proxies_alone_and_the_second_everything(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    before = weights(trainer)
    proxies = [head.state()["rows"].clone() for head in trainer.heads]
    run(trainer, 2)
    assert all(torch.equal(before[n], p) for n, p in weights(trainer).items())
    for head, rows in zip(trainer.heads, proxies, strict=True):
        assert not torch.equal(head.state()["rows"], rows)
    run(trainer, 1)
    assert not any(torch.equal(before[n], p) for n, p in weights(trainer).items() if p.ndim > 1)
    trainer.close()


def test_frozen_parameters_stand_still(tmp_path: Path) -> None:
    trainer = make(tmp_path, "schedule.heads.steps=0", "model.frozen=[conv1, layer1]")
    before = weights(trainer)
    run(trainer, 2)
    for name, found in weights(trainer).items():
        frozen = name.startswith(("trunk.conv1", "trunk.layer1"))
        assert torch.equal(found, before[name]) or not frozen, name
    assert not torch.equal(
        weights(trainer)["trunk.layer4.0.conv1.weight"], before["trunk.layer4.0.conv1.weight"]
    )
    trainer.close()
    with pytest.raises(TrainingError, match="no parameter of resnet10t starts with 'blocks'"):
        make(tmp_path, "model.frozen=[blocks]")


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_statistics_follow_the_flag(tmp_path: Path, frozen: bool) -> None:
    trainer = make(
        tmp_path, "schedule.heads.steps=0", f"model.frozen_batch_norm={str(frozen).lower()}"
    )
    before = batch_norms(trainer.model)[0].running_mean
    assert before is not None
    before = before.clone()
    run(trainer, 1)
    after = batch_norms(trainer.model)[0].running_mean
    assert after is not None
    assert torch.equal(before, after) == frozen
    trainer.close()


def test_a_specialist_has_its_own_heads_only(tmp_path: Path) -> None:
    trainer = make(tmp_path, "data.tasks=[shop]")
    assert [head.column for head in trainer.heads] == ["shop_class", "shop_instance"]
    assert set(trainer.examples.task.tolist()) == {"shop"}
    run(trainer, 3)
    trainer.close()


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampled="],
        ["model.layer_norm=false"],
        ["images_per_class=2", "batch=24"],
        ["precision=bf16"],
        ["data.labels=[browse_class, camera_category, shop_instance]"],
        ["heads={browse_class: {loss: cosface}, camera_category: {loss: arcface, margin: 0.3}}"],
        ["heads={browse_class: {loss: proxy-anchor}, shop_class: {loss: proxy-anchor}}"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_ablations_run_and_learn_something(tmp_path: Path, overrides: list[str]) -> None:
    if overrides == ["sampled="]:
        overrides = ["sampled={}"]
    trainer = make(tmp_path, "schedule.full.steps=30", "schedule.rate=0.0003", *overrides)
    losses = run(trainer, 32)
    first, last = sum(losses[0]), sum(sum(step) for step in losses[-4:]) / 4
    assert last < first
    trainer.close()


def test_heads_have_weights_and_temperatures_of_their_own(tmp_path: Path) -> None:
    plain = make(tmp_path, "schedule.momentum=0", "schedule.weight_decay=0")
    camera = "heads.camera_category.weight=3"
    heavy = make(tmp_path, "schedule.momentum=0", "schedule.weight_decay=0", camera)
    warm = make(tmp_path, "heads.camera_category.temperature=0.2")
    assert [head.criterion.temperature for head in warm.heads] == [0.05, 0.2, 0.05, 0.05]
    before = [head.state()["rows"].clone() for head in plain.heads]
    losses = [run(trainer, 1)[0] for trainer in (plain, heavy, warm)]
    assert losses[0] == losses[1]  # reported as they are
    assert losses[2][1] < losses[0][1]
    for number, start in enumerate(before):
        moved = [trainer.heads[number].state()["rows"] - start for trainer in (plain, heavy)]
        factor = 3 if plain.heads[number].column == "camera_category" else 1
        torch.testing.assert_close(moved[1], factor * moved[0], rtol=1e-3, atol=1e-6)
    for trainer in (plain, heavy, warm):
        trainer.close()


def test_heads_have_losses_of_their_own(tmp_path: Path) -> None:
    named = dict(zip(("browse_class", "camera_category", "shop_class"), _LOSSES, strict=False))
    heads = {column: {"loss": loss} for column, loss in named.items()}
    shop = {"loss": "proxy-anchor", "margin": 0.2, "temperature": 0.03125}
    trainer = make(tmp_path, f"heads={json.dumps({**heads, 'shop_instance': shop})}")
    assert [head.criterion for head in trainer.heads] == [
        NormalizedSoftmax(0.05),
        CosFace(0.05, 0.35),
        ArcFace(0.05, 0.5),
        ProxyAnchor(1 / 32, 0.2),
    ]
    trainer.save()
    trainer.close()
    text = from_checkpoint(tmp_path / "run" / checkpoint.LAST)[0].training or ""
    assert "normalised softmax where no other loss is named: browse_class (6 classes, " in text
    assert "4 in a softmax, cosface)" in text
    assert set(_LOSSES) == set(get_args(LossName))
    for other in ("", "heads.shop_class.loss=cosface", "heads.shop_class.margin=0.1"):
        changed = [o for o in (f"heads={json.dumps(heads)}", other) if o]
        trainer = make(tmp_path, *changed)
        with pytest.raises(TrainingError, match="a run with another heads"):
            trainer.resume()
        trainer.close()


def test_a_loss_over_the_whole_batch_runs_in_one_process(tmp_path: Path) -> None:
    config = make(tmp_path, "heads.shop_class.loss=proxy-anchor").config
    with pytest.raises(TrainingError, match=r"heads\.shop_class\.loss compares all images"):
        build_heads(config, {"shop_class": ["a", "b"]}, 4, Rank(world=2))


@pytest.mark.parametrize(
    "overrides",
    [["precision=fp32"], ["gradnorm={}"], ["heads.shop_class.loss=proxy-anchor"]],
    ids=lambda overrides: overrides[0],
)
def test_a_batch_in_parts_is_the_batch(tmp_path: Path, overrides: list[str]) -> None:
    """Also for losses over the whole batch; the trunk never sees more than a part."""
    smooth = ("model.trunk=test_efficientnet", "model.weights=random")  # rounding flips ReLUs
    whole, parts = (
        make(tmp_path, "schedule.heads.steps=0", *smooth, *overrides, f"accumulate={number}")
        for number in ("", "5")
    )
    sizes: list[int] = []
    parts.model.trunk.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    start = torch.cat([p.flatten() for p in weights(whole).values()])
    losses = [torch.tensor(run(trainer, 3)) for trainer in (whole, parts)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    ends = [torch.cat([p.flatten() for p in weights(t).values()]) for t in (whole, parts)]
    assert float((ends[0] - ends[1]).norm()) <= 1e-4 * float((ends[0] - start).norm())
    for ours, theirs in zip(parts.heads, whole.heads, strict=True):
        torch.testing.assert_close(
            ours.state()["rows"], theirs.state()["rows"], rtol=1e-4, atol=1e-6
        )
    assert max(sizes) == 3  # of 12
    assert len(sizes) >= 3 * 2 * 4  # steps, forward and backward, parts: nothing is kept between
    for trainer in (whole, parts):
        trainer.close()


def test_gradnorm_moves_the_weights_resumes_and_is_told_in_the_checkpoint(tmp_path: Path) -> None:
    overrides = ["gradnorm={layer: layer4}", "schedule.full.steps=4"]
    trainer = make(tmp_path, *overrides)
    run(trainer, 2)
    assert trainer.gradnorm is not None
    assert trainer.weights.tolist() == [1] * 4  # proxies alone
    run(trainer, 2)
    weights = trainer.gradnorm.weights
    assert weights.sum().item() == pytest.approx(4)
    assert weights.std() > 0
    trainer.save()
    run(trainer, 2)
    again = make(tmp_path, *overrides)
    assert again.resume()
    assert again.gradnorm is not None
    assert torch.equal(again.gradnorm.weights, weights)
    run(again, 2)
    assert torch.equal(again.gradnorm.weights, trainer.gradnorm.weights)
    again.save()
    _, _, summary = checkpoint.load_embedder(tmp_path / "run" / "last.pt")
    assert list(summary["loss_weights"].values()) == again.weights.tolist()
    for one in (trainer, again):
        one.close()
    with pytest.raises(TrainingError, match=r"gradnorm.layer: .* starts with 'conv_head'"):
        make(tmp_path, "gradnorm={}")


def test_fp16_leaves_out_steps_that_overflow_and_lowers_the_scale(tmp_path: Path) -> None:
    trainer = make(tmp_path, "precision=fp16", "schedule.heads.steps=0", "schedule.full.steps=40")
    trainer.scaler = GradScaler("cpu", init_scale=2.0**40)  # certain to overflow half precision
    before = weights(trainer)
    proxies = [head.state()["rows"].clone() for head in trainer.heads]
    pixels = trainer.pixels()
    trainer.run_step(next(pixels))
    assert all(torch.equal(before[n], p) for n, p in weights(trainer).items())
    for head, rows in zip(trainer.heads, proxies, strict=True):
        assert torch.equal(head.state()["rows"], rows)
    assert trainer.scaler.get_scale() == 2.0**39
    trainer.scaler = GradScaler("cpu", init_scale=2.0**4)
    trainer.run_step(next(pixels))
    assert not all(torch.equal(before[n], p) for n, p in weights(trainer).items())
    trainer.close()


def test_the_fixed_map_centres_the_training_features_and_resumes(tmp_path: Path) -> None:
    trainer = make(tmp_path, "model.fixed_map=true", "model.rotation_seed=4")
    assert isinstance(trainer.model.fixed_map, FixedMap)
    mean = trainer.model.fixed_map.mean.clone()
    assert mean.any()
    run(trainer, 3)
    trainer.save()
    trainer.close()
    again = make(tmp_path, "model.fixed_map=true", "model.rotation_seed=4")
    assert again.resume()
    assert isinstance(again.model.fixed_map, FixedMap)
    assert torch.equal(again.model.fixed_map.mean, mean)
    again.close()


def test_a_run_continues_at_another_size_from_anothers_weights(tmp_path: Path) -> None:
    first = make(tmp_path)
    run(first, 5)
    first.save()
    first.save_best()
    first.close()
    (tmp_path / "more").mkdir()
    second = make(tmp_path / "more", "preprocessing.size=48")
    columns = [head.column for head in second.heads]
    assert second.start_from(tmp_path / "run" / "last.pt") == columns
    assert second.fingerprint() != first.fingerprint()  # momentum starts anew
    assert all(torch.equal(weights(first)[n], p) for n, p in weights(second).items())
    for ours, theirs in zip(second.heads, first.heads, strict=True):
        assert torch.equal(ours.state()["rows"], theirs.state()["rows"])
        assert not ours.state()["kept"].any()
    run(second, 1)
    second.save()
    second.close()
    # Two of the five steps moved proxies alone.
    before = [{"steps": 5, "size": first.config.preprocessing.size, "images": 3 * 12}]
    resumed = make(tmp_path / "more", "preprocessing.size=48")
    assert resumed.resume()
    resumed.save_best()
    resumed.close()
    _, _, summary = checkpoint.load_embedder(tmp_path / "more" / "run" / "best.pt")
    assert (summary["steps"], summary["earlier"]) == (1, before)
    third = make(tmp_path / "more")
    assert third.start_from(tmp_path / "run" / "best.pt") == []
    third.close()


def test_starting_from_something_else_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.save()
    first.close()
    (tmp_path / "more").mkdir()
    for overrides, message in (
        (["model.trunk=resnet18"], "another network"),
        (["data.made_up.browse_class=7"], "other classes of browse_class"),
    ):
        other = make(tmp_path / "more", *overrides)
        with pytest.raises(TrainingError, match=message):
            other.start_from(tmp_path / "run" / "last.pt")
        other.close()


def test_resume_refuses_other_rows(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.save()
    trainer.examples.images[3] = "another picture"
    with pytest.raises(TrainingError, match="the manifest has changed"):
        trainer.resume()
    trainer.close()


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path: Path) -> None:
    trainer = make(tmp_path, "schedule.proxy_rate=1e30", "schedule.momentum=0.99")
    with pytest.raises(TrainingError, match=r"loss of \w+ is (nan|inf) at step .*lower schedule"):
        run(trainer, 5)
    trainer.close()


def test_tasks_without_rows_or_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training rows of the task browse"):
        make(tmp_path, "data.made_up.browse_class=0")
    with pytest.raises(TrainingError, match="no training row of the task camera carries any label"):
        make(tmp_path, "data.labels=[browse_class, shop_instance]")


def test_a_checkpoint_exports_unless_it_has_no_layer_norm(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.validated = {"shop": {"metric": "R@1", "float_": 0.5, "code": 0.4, "queries": 9}}
    trainer.save_best()
    trainer.close()
    exportable, preprocessing = from_checkpoint(tmp_path / "run" / checkpoint.BEST)
    assert preprocessing.size == 32
    assert exportable.weights == "trained on browse, camera, shop, from: random"
    assert "shop R@1 0.500 by float and 0.400 by code on 9 queries" in (exportable.training or "")
    plain = make(tmp_path, "model.layer_norm=false")
    plain.save_best()
    plain.close()
    with pytest.raises(SpecError, match="without LayerNorm"):
        from_checkpoint(tmp_path / "run" / checkpoint.BEST)


def test_averaged_weights_are_what_is_saved_and_a_resume_goes_on_with_both(tmp_path: Path) -> None:
    settings = ["schedule.heads.steps=0", "schedule.full.steps=4", "schedule.ema=0.5"]
    trainer = make(tmp_path, *settings)
    expected: dict[str, Tensor] = {}
    pixels = trainer.pixels()
    for step in range(4):
        trainer.run_step(next(pixels))
        now = weights(trainer)
        # The average begins with the first step's weights: w <- w / 2 + new / 2 from then on.
        expected = {n: (expected[n] + now[n]) / 2 if step else now[n] for n in now}
        if step == 1:
            trainer.save()
    saved = dict(trainer.embedder.named_parameters())
    torch.testing.assert_close(saved, expected)
    assert not torch.equal(saved["trunk.conv1.0.weight"], weights(trainer)["trunk.conv1.0.weight"])

    resumed = make(tmp_path, *settings)
    assert resumed.resume()
    run(resumed, 2)
    assert weights(resumed).keys() == weights(trainer).keys()
    torch.testing.assert_close(weights(resumed), weights(trainer), rtol=0, atol=0)
    torch.testing.assert_close(dict(resumed.embedder.named_parameters()), saved, rtol=0, atol=0)
    resumed.save()
    kept = checkpoint.read(tmp_path / "run/last.pt")["embedder"]
    torch.testing.assert_close({n: kept[n] for n in saved}, saved, rtol=0, atol=0)


def test_clipping_bounds_the_step_and_norms_can_be_spared_the_decay(tmp_path: Path) -> None:
    one = ["schedule.heads.steps=0", "schedule.momentum=0", "schedule.weight_decay=0"]
    trainer = make(tmp_path, *one, "schedule.rate=1", "schedule.clip=0.01")
    before = weights(trainer)
    run(trainer, 1)
    moved = torch.stack([(weights(trainer)[n] - before[n]).norm() for n in before]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)

    trainer = make(tmp_path, "schedule.decay_norms=false")
    decays = {group["weight_decay"]: group["params"] for group in trainer.optimizer.param_groups}
    assert {p.ndim for p in decays[0.0]} == {1}
    assert 1 not in {p.ndim for p in decays[1e-4]}
    assert sum(map(len, decays.values())) == len(weights(trainer))


def test_adamw_is_the_librarys(tmp_path: Path) -> None:
    trainer = make(tmp_path, "schedule.heads.steps=0", "schedule.optimizer=adamw")
    before = weights(trainer)
    run(trainer, 1)
    # Its first step is the sign of the gradient times the rate, plus the decay.
    name = "trunk.conv1.0.weight"
    moved = (weights(trainer)[name] - before[name] * (1 - 0.001 * 1e-4)).abs()
    assert float(moved.median()) == pytest.approx(0.001, rel=1e-2)
