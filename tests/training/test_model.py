"""UnifiedEmbedder: the normalisation, the norm, the fixed map and frozen BatchNorm."""

import numpy as np
import pytest
import torch
from torch import nn

from unified_embedding.datasets import made_up
from unified_embedding.errors import SpecError
from unified_embedding.training.model import (
    LAYER_NORM_EPS,
    FixedMap,
    UnifiedEmbedder,
    batch_norms,
    calibrate_batch_norm,
    random_rotation,
)

TRUNK = "resnet10t"  # the smallest residual trunk with BatchNorm; D = 512
SIZE = 64


@pytest.fixture
def model() -> UnifiedEmbedder:
    torch.manual_seed(0)
    return UnifiedEmbedder(TRUNK, SIZE)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(made_up.pixels(6, SIZE))


def test_embedding_is_the_layer_norm_of_the_normalised_trunk(
    model: UnifiedEmbedder, pixels: torch.Tensor
) -> None:
    model.eval()
    image = np.transpose((pixels.numpy().astype(np.float32) - 127) / 128, (0, 3, 1, 2))
    with torch.no_grad():
        features = model.trunk(torch.from_numpy(np.ascontiguousarray(image))).double().numpy()
        embedding = model(pixels).numpy()
    centred = features - features.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt(features.var(axis=1, keepdims=True) + LAYER_NORM_EPS)
    np.testing.assert_allclose(embedding, expected, atol=1e-4)
    assert embedding.shape == (6, model.dim) == (6, 512)


def test_without_layer_norm_the_pooled_features_come_out(pixels: torch.Tensor) -> None:
    model = UnifiedEmbedder(TRUNK, SIZE, layer_norm=False).eval()
    with torch.no_grad():
        assert torch.equal(model(pixels), model.pooled(pixels))


def test_mean_and_std_are_applied_per_channel(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    plain = UnifiedEmbedder(TRUNK, SIZE, (0, 0, 0), (1, 1, 1)).eval()
    torch.manual_seed(0)
    scaled = UnifiedEmbedder(TRUNK, SIZE, (10, 20, 30), (2, 4, 8)).eval()
    moved = (pixels.float() - torch.tensor([10.0, 20.0, 30.0])) / torch.tensor([2.0, 4.0, 8.0])
    with torch.no_grad():
        torch.testing.assert_close(scaled(pixels), plain(moved))


def test_frozen_batch_norm_keeps_its_statistics_in_train_mode(
    model: UnifiedEmbedder, pixels: torch.Tensor
) -> None:
    before = [layer.running_mean.clone() for layer in batch_norms(model)]
    model.train()
    assert model.trunk.training
    model(pixels)
    after = [layer.running_mean for layer in batch_norms(model)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_unfrozen_batch_norm_moves_its_statistics(pixels: torch.Tensor) -> None:
    model = UnifiedEmbedder(TRUNK, SIZE, frozen_batch_norm=False).train()
    before = batch_norms(model)[0].running_mean.clone()
    model(pixels)
    assert not torch.equal(before, batch_norms(model)[0].running_mean)


def test_fixed_map_starts_as_identity_and_then_centres_and_rotates(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    mapped = UnifiedEmbedder(TRUNK, SIZE, fixed_map=True).eval()
    torch.manual_seed(0)
    plain = UnifiedEmbedder(TRUNK, SIZE).eval()
    with torch.no_grad():
        features = plain.pooled(pixels)
        torch.testing.assert_close(mapped.pooled(pixels), features)
        mean = features.mean(0)
        assert isinstance(mapped.fixed_map, FixedMap)
        mapped.fixed_map.set(mean.numpy(), seed=3)
        found = mapped.pooled(pixels)
    torch.testing.assert_close(found.mean(0), torch.zeros(512), atol=1e-4, rtol=0)
    # A rotation keeps the geometry of the centred features.
    torch.testing.assert_close(
        found @ found.T, (features - mean) @ (features - mean).T, atol=1e-3, rtol=1e-3
    )
    assert not list(mapped.fixed_map.parameters())


@pytest.mark.parametrize("dim", [8, 33])
def test_random_rotation_is_orthogonal_and_seeded(dim: int) -> None:
    rotation = random_rotation(dim, 1)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(dim), atol=1e-5)
    np.testing.assert_array_equal(rotation, random_rotation(dim, 1))
    assert not np.allclose(rotation, random_rotation(dim, 2))


def test_calibration_makes_a_random_trunk_tell_pictures_apart(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = UnifiedEmbedder("seresnet50", SIZE).eval()
    gains = [layer.weight.detach().clone() for layer in batch_norms(model)]
    assert any(not gain.any() for gain in gains)  # timm starts residual branches at zero
    many = torch.from_numpy(made_up.pixels(32, SIZE))

    def mean_cosine() -> float:
        with torch.no_grad():
            rows = nn.functional.normalize(model(pixels))
        cosine = rows @ rows.T
        return float((cosine.sum() - len(rows)) / (len(rows) * (len(rows) - 1)))

    before = mean_cosine()
    calibrate_batch_norm(model, many, batch=8)
    assert mean_cosine() < before - 0.2
    assert all(bool(layer.weight.any()) for layer in batch_norms(model))
    assert not any(layer.training for layer in batch_norms(model))
    assert all(layer.momentum == 0.1 for layer in batch_norms(model))


def test_calibration_measures_the_first_norm_exactly(pixels: torch.Tensor) -> None:
    model = UnifiedEmbedder(TRUNK, SIZE).eval()
    inputs: list[torch.Tensor] = []
    first = batch_norms(model)[0]
    handle = first.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    calibrate_batch_norm(model, pixels, batch=len(pixels))
    handle.remove()
    assert first.running_mean is not None
    torch.testing.assert_close(first.running_mean, inputs[0].mean((0, 2, 3)))


def test_calibration_refuses_a_single_picture(model: UnifiedEmbedder, pixels: torch.Tensor) -> None:
    with pytest.raises(SpecError, match="at least 2 pictures"):
        calibrate_batch_norm(model, pixels[:1])


def test_unknown_trunk_names_the_near_ones() -> None:
    with pytest.raises(SpecError, match=r"did you mean: .*seresnext101_32x4d"):
        UnifiedEmbedder("resnext101_32x4", SIZE)


@pytest.mark.parametrize("trunk", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_trunks_of_other_families_work(trunk: str, pixels: torch.Tensor) -> None:
    model = UnifiedEmbedder(trunk, SIZE).eval()
    with torch.no_grad():
        assert model(pixels).shape == (6, model.dim)
