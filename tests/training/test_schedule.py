"""Learning rates and stages."""

import math

import pytest

from unified_embedding.training.config import Length, ScheduleConfig
from unified_embedding.training.schedule import Schedule


def schedule(**fields: object) -> Schedule:
    values = {
        "heads": Length(steps=10),
        "full": Length(steps=100),
        "rate": 0.5,
        "proxy_rate": 2.0,
        **fields,
    }
    return Schedule.of(ScheduleConfig.model_validate(values), steps_per_epoch=40)


def test_lengths_are_steps_or_else_epochs() -> None:
    counted = schedule(heads=Length(epochs=0.5), full=Length(epochs=3, steps=7))
    assert (counted.heads, counted.full, counted.steps) == (20, 7, 27)


def test_the_trunk_stands_still_in_the_first_stage() -> None:
    found = schedule()
    assert [found.trains_trunk(step) for step in (0, 9, 10, 109)] == [False, False, True, True]
    assert found.rate(9) == 0
    assert found.proxy_rate(9) == 2.0


def test_cosine_falls_to_zero_over_the_second_stage() -> None:
    found = schedule(decay="cosine")
    assert found.rate(10) == 0.5
    assert found.rate(60) == pytest.approx(0.25)
    assert found.rate(109) == pytest.approx(0.25 * (1 + math.cos(math.pi * 0.99)))
    assert found.proxy_rate(60) == pytest.approx(1.0)


def test_steps_divide_by_ten_at_each_milestone() -> None:
    found = schedule(decay="step", milestones=[0.5, 0.75])
    rates = [found.rate(step) for step in (59, 60, 84, 85)]
    assert rates == pytest.approx([0.5, 0.05, 0.05, 0.005])


def test_warmup_rises_to_the_full_rate_and_spares_the_proxies() -> None:
    found = schedule(decay="constant", warmup=0.1)
    assert [found.rate(s) for s in (10, 14, 19, 20)] == pytest.approx([0.05, 0.25, 0.5, 0.5])
    assert found.proxy_rate(10) == 2.0


def test_no_second_stage_needs_no_rate() -> None:
    found = schedule(full=Length(steps=0))
    assert found.steps == 10
    assert found.proxy_rate(5) == 2.0
