"""Deadlines of requests, as they travel."""

import math
import time

import pytest

from unified_embedding import deadline
from unified_embedding.errors import Late, Malformed


def test_a_request_without_a_deadline_has_for_ever() -> None:
    assert deadline.left({}) == math.inf
    assert deadline.left({"crop": "0,0,1,1"}) == math.inf


def test_what_is_left_is_counted_from_now() -> None:
    before = time.time()
    ahead = deadline.left({"deadline": f"{before + 1000:.3f}"})
    behind = deadline.left({"deadline": str(before - 30)})
    passed = time.time() - before
    assert 1000 - passed - 0.001 <= ahead <= 1000.001
    assert -30 - passed - 0.001 <= behind <= -30


@pytest.mark.parametrize("value", [12345678901, 12345678901.5, "12345678901", " 1.2e10 "])
def test_a_deadline_is_a_number_or_its_text(value: object) -> None:
    assert deadline.left({"deadline": value}) > 1e9


@pytest.mark.parametrize("value", ["soon", "", "nan", "inf", None, [1], 10**400, "9" * 400])
def test_anything_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(Malformed, match="is not a moment"):
        deadline.left({"deadline": value})


def test_a_huge_value_is_not_echoed() -> None:
    with pytest.raises(Malformed) as caught:
        deadline.left({"deadline": "x" * 20_000})
    assert "x" * 60 in str(caught.value)
    assert str(caught.value).count("x") < 85


def test_lateness_is_told_in_seconds() -> None:
    assert "99.500 s are left" in str(Late(99.5, 110.0))
    assert "takes 110.000 s now" in str(Late(99.5, 110.0))
    passed = str(Late(-30.0, 0.0))
    assert "passed 30.000 s ago" in passed
    assert "clock" in passed
