"""Learning rates and stages as functions of the step."""

import math
from dataclasses import dataclass

from unified_embedding.training.config import Length, ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """Two stages: proxies alone for `heads` steps, then everything for `full` steps.

    Attributes:
        config: rates and decay.
        heads: length of the first stage in steps.
        full: length of the second.
    """

    config: ScheduleConfig
    heads: int
    full: int

    @classmethod
    def of(cls, config: ScheduleConfig, steps_per_epoch: int) -> "Schedule":
        """Count the stages' steps."""
        return cls(
            config, _steps(config.heads, steps_per_epoch), _steps(config.full, steps_per_epoch)
        )

    @property
    def steps(self) -> int:
        """Steps of both stages."""
        return self.heads + self.full

    def trains_trunk(self, step: int) -> bool:
        """False in the first stage."""
        return step >= self.heads

    def rate(self, step: int) -> float:
        """Learning rate of the trunk; zero in the first stage."""
        if not self.trains_trunk(step):
            return 0.0
        warm = self.config.warmup * self.full
        rising = min(1.0, (step - self.heads + 1) / warm) if warm else 1.0
        return self.config.rate * rising * self._course(step)

    def proxy_rate(self, step: int) -> float:
        """Learning rate of the proxies."""
        return self.config.proxy_rate * self._course(step)

    def _course(self, step: int) -> float:
        if step < self.heads or self.config.decay == "constant":
            return 1.0
        done = (step - self.heads) / self.full
        if self.config.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 0.1 ** sum(done >= milestone for milestone in self.config.milestones)


def _steps(length: Length, steps_per_epoch: int) -> int:
    if length.steps is not None:
        return length.steps
    return round(length.epochs * steps_per_epoch)
