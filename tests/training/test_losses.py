"""Losses against pytorch-metric-learning: values and gradients, whole and over sampled classes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unified_embedding.training.heads import FullHead, ProxyHead
from unified_embedding.training.losses import (
    ArcFace,
    CosFace,
    NormalizedSoftmax,
    ProxyAnchor,
    ProxyLoss,
)
from unified_embedding.training.sampled_head import SampledHead
from unified_embedding.training.subsampler import UNLABELLED

DIM, CLASSES, BATCH = 16, 23, 12

# Ours, their class and their arguments; degrees are theirs.
PAIRS: list[tuple[ProxyLoss, str, dict[str, float]]] = [
    (NormalizedSoftmax(0.05), "NormalizedSoftmaxLoss", {"temperature": 0.05}),
    (CosFace(1 / 64, 0.35), "CosFaceLoss", {"margin": 0.35, "scale": 64}),
    (ArcFace(1 / 64, 0.5), "ArcFaceLoss", {"margin": float(np.degrees(0.5)), "scale": 64}),
    # So large a margin carries most angles beyond pi.
    (ArcFace(1 / 16, 1.7), "ArcFaceLoss", {"margin": float(np.degrees(1.7)), "scale": 16}),
    (ProxyAnchor(1 / 32, 0.1), "ProxyAnchorLoss", {"margin": 0.1, "alpha": 32}),
    (ProxyAnchor(0.05, 0.2), "ProxyAnchorLoss", {"margin": 0.2, "alpha": 20}),
]
each_loss = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: str(pair[0]))


def theirs(
    pair: tuple[ProxyLoss, str, dict[str, float]], x: Tensor, proxies: Tensor, labels: np.ndarray
) -> tuple[float, Tensor, Tensor]:
    """Loss, and its gradients by embeddings and proxies, of their implementation."""
    losses = pytest.importorskip("pytorch_metric_learning.losses", reason="dev extra")
    _, name, arguments = pair
    loss: Any = getattr(losses, name)(len(proxies), DIM, **arguments)
    anchored = hasattr(loss, "proxies")
    parameter = loss.proxies if anchored else loss.W
    parameter.data = proxies.detach().clone() if anchored else proxies.detach().T.clone()
    leaf = x.detach().clone().requires_grad_()
    # They normalise embeddings except in the normalised softmax.
    value = loss(functional.normalize(leaf), torch.from_numpy(labels))
    value.backward()
    gradient = parameter.grad if anchored else parameter.grad.T
    return value.item(), leaf.grad, gradient  # type: ignore[return-value]


def inputs() -> tuple[Tensor, np.ndarray]:
    """Embeddings, and labels of a third of the classes; every fourth image has none."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, CLASSES // 3, BATCH)
    labels[::4] = UNLABELLED
    return torch.from_numpy(rng.standard_normal((BATCH, DIM)).astype(np.float32)), labels


@each_loss
@pytest.mark.parametrize("sampled", [None, 11, CLASSES])
def test_losses_and_gradients_are_those_of_pytorch_metric_learning(
    pair: tuple[ProxyLoss, str, dict[str, float]], sampled: int | None
) -> None:
    """A sampled head's are theirs over its sampled classes alone."""
    x, labels = inputs()
    head: ProxyHead = (
        FullHead("c", CLASSES, DIM, 3, pair[0])
        if sampled is None
        else SampledHead("c", CLASSES, DIM, sampled, 3, pair[0])
    )
    rows = head.state()["rows"].clone()
    head.begin(labels, 0)
    chosen = head._sampled_set if isinstance(head, SampledHead) else np.arange(CLASSES)
    assert len(chosen) == (sampled or CLASSES)
    leaf = x.clone().requires_grad_()
    loss = head.loss(leaf, labels)
    loss.backward()
    assert head._proxies is not None
    labelled = labels != UNLABELLED
    value, by_x, by_proxies = theirs(
        pair, x[torch.from_numpy(labelled)], rows[chosen], np.searchsorted(chosen, labels[labelled])
    )
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert leaf.grad is not None
    assert not leaf.grad[torch.from_numpy(~labelled)].any()
    torch.testing.assert_close(leaf.grad[torch.from_numpy(labelled)], by_x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head._proxies.grad, by_proxies, rtol=1e-4, atol=1e-4)
    head.close()


def test_the_default_is_the_normalised_softmax_to_the_bit() -> None:
    x, labels = inputs()
    head = FullHead("c", CLASSES, DIM, 3)
    head.begin(labels, 0)
    kept = labels != UNLABELLED
    cosine = functional.normalize(x[kept]) @ functional.normalize(head.state()["rows"]).T
    wanted = torch.from_numpy(labels[kept])
    total = functional.cross_entropy(cosine / 0.05, wanted, reduction="sum")
    assert torch.equal(head.loss(x, labels), total / kept.sum())


@each_loss
def test_a_batch_without_labels_costs_nothing(
    pair: tuple[ProxyLoss, str, dict[str, float]],
) -> None:
    head = FullHead("c", CLASSES, DIM, 3, pair[0])
    labels = np.full(BATCH, UNLABELLED)
    x = inputs()[0].requires_grad_()
    head.begin(labels, 0)
    loss = head.loss(x, labels)
    loss.backward()
    assert loss.item() == 0
    for gradient in (x.grad, head.rows.grad):
        assert gradient is not None
        assert not gradient.any()


@pytest.mark.parametrize("loss", [ArcFace(), ArcFace(margin=3.0)], ids=str)
def test_arcface_is_finite_where_an_embedding_meets_its_proxy(loss: ProxyLoss) -> None:
    for sign in (1.0, -1.0):
        x = (sign * torch.eye(4)[:2]).requires_grad_()
        value = loss(x, torch.eye(4), torch.tensor([0, 1]), 2)
        value.backward()
        assert torch.isfinite(value)
        assert x.grad is not None
        assert bool(torch.isfinite(x.grad).all())
