"""GradNorm against its formula, with autograd's own gradient of the loss of the weights."""

import pytest
import torch
from torch import Tensor, nn

from unified_embedding.training.gradnorm import GradNorm

TASKS, ALPHA, RATE = 3, 1.5, 0.02
EXPECTED = [2.0, 0.7, 1.3]
SCALES = [1.0, 10.0, 0.2]


class _Toy(nn.Module):
    """The paper's toy: one shared layer, a target per task, of very different scales."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(8, 6)
        self.targets = [scale * torch.randn(16, 6) for scale in SCALES]

    def losses(self, inputs: Tensor) -> list[Tensor]:
        out = torch.tanh(self.shared(inputs))
        return [
            (scale * out - t).square().mean() for scale, t in zip(SCALES, self.targets, strict=True)
        ]


def formula(weights: Tensor, losses: list[Tensor], layer: Tensor) -> Tensor:
    """w(t + 1) of algorithm 1: L_grad is written down and differentiated."""
    w = weights.clone().requires_grad_()
    norms = [
        torch.autograd.grad(w[i] * loss, layer, create_graph=True)[0].norm()
        for i, loss in enumerate(losses)
    ]
    mean = torch.stack(norms).mean()
    relative = torch.stack([loss / e for loss, e in zip(losses, EXPECTED, strict=True)])
    inverse_rate = relative / relative.mean()
    constant = (mean * inverse_rate**ALPHA).detach()
    l_grad = torch.stack([(g - c).abs() for g, c in zip(norms, constant, strict=True)]).sum()
    (gradient,) = torch.autograd.grad(l_grad, w)
    moved = weights - RATE * gradient
    return moved / moved.sum() * TASKS


def test_the_weights_follow_the_formula_for_many_steps() -> None:
    toy = _Toy()
    layer = toy.shared.weight
    found = GradNorm([layer], EXPECTED, ALPHA, RATE)
    optimizer = torch.optim.SGD(toy.parameters(), lr=0.01)
    for step in range(15):
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        before = found.weights.clone()
        expected = formula(before, toy.losses(inputs), layer)
        losses = toy.losses(inputs)
        used = found.step(losses)
        assert torch.equal(used, before)  # this step's sum has the weights of before
        torch.testing.assert_close(found.weights, expected, rtol=1e-4, atol=1e-6)
        optimizer.zero_grad()
        (torch.stack(losses) * used).sum().backward()  # the graph is still there
        optimizer.step()


def test_a_task_of_large_gradients_is_held_back() -> None:
    toy = _Toy()
    found = GradNorm([toy.shared.weight], [1.0] * TASKS, 0.0, RATE)
    for step in range(60):
        found.step(toy.losses(torch.randn(16, 8, generator=torch.Generator().manual_seed(step))))
    small, large = found.weights[2], found.weights[1]
    assert large < 0.3 < small
    assert found.weights.sum().item() == pytest.approx(TASKS)


def test_a_task_without_labels_in_the_batch_does_no_harm() -> None:
    toy = _Toy()
    found = GradNorm([toy.shared.weight], EXPECTED, ALPHA, RATE)
    losses = toy.losses(torch.randn(16, 8))
    nothing = torch.zeros((), requires_grad=True) * 1.0
    found.step([*losses[:2], nothing])
    assert bool(torch.isfinite(found.weights).all())
