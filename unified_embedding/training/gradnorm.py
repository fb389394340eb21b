"""GradNorm: loss weights that keep every task's gradient at a common scale.

Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss
Balancing in Deep Multitask Networks", ICML 2018 (arXiv 1711.02257), algorithm 1.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

_LEAST: Final = 1e-3
"""Of a weight, which plain descent could push below zero."""


class GradNorm:
    """Weights w_i of T losses L_i, which start at 1 and always add up to T.

    With W the last shared layer, G_i = |grad_W w_i L_i|, its mean over tasks G, the relative
    inverse training rate r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)), the weights descend along
    the gradient of sum_i |G_i - G r_i^alpha| with G r_i^alpha held constant.

    Args:
        layer: parameters W.
        expected: L_i(0); for a softmax over C classes the paper allows ln C in its place, which
            does not depend on the draw of the first weights.
        alpha: see above.
        rate: of the descent.

    Attributes:
        weights: float32 [T], for the step that comes next.
    """

    def __init__(
        self, layer: Sequence[Tensor], expected: Sequence[float], alpha: float, rate: float
    ) -> None:
        self.layer = list(layer)
        device = self.layer[0].device
        self.expected = torch.tensor(expected, device=device)
        self.alpha = alpha
        self.rate = rate
        self.weights = torch.ones(len(expected), device=device)

    def step(self, losses: Sequence[Tensor]) -> Tensor:
        """Weights [T] of this step's sum; moves those of the next.

        Args:
            losses: L_i, whose graph leads to the layer and is kept.
        """
        used = self.weights
        norms = torch.stack([self._norm(loss) for loss in losses])
        values = torch.stack([loss.detach().float() for loss in losses])
        relative = values / self.expected
        rates = relative / relative.mean()
        scaled = used * norms
        target = scaled.mean() * rates**self.alpha
        # d/dw_i of |w_i g_i - target_i| for a constant target.
        moved = used - self.rate * torch.sign(scaled - target) * norms
        moved = moved.clamp(min=_LEAST)
        self.weights = moved * (len(losses) / moved.sum())
        return used

    def _norm(self, loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, self.layer, retain_graph=True, allow_unused=True)
        found = [one.float().flatten() for one in gradients if one is not None]
        return torch.cat(found).norm() if found else self.weights.new_zeros(())
