"""Rounds on quiet and on busy machines: which are made, which count, and what is said."""

import asyncio
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip("psutil", reason="the extra `load` is not installed")

from unified_embedding.measure import quiet, rounds
from unified_embedding.measure.paired import MIN_ROUNDS, at_most
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.questions import AskedRounds, Question
from unified_embedding.measure.quiet import Condition, Moment, look, running, used_and_stolen
from unified_embedding.measure.rounds import Rounds, paired

# Two moments ten seconds apart on a virtual machine of four cores, lines that matter.
STAT = """cpu  50636 7000 9060 18196 430 0 225 639 0 0
cpu0 1000 100 200 5000 10 5 20 50 0 0
cpu1 2000 0 400 4000 10 5 20 30 0 0
cpu2 9000 0 0 0 0 0 0 0 0 0
cpu10 7000 0 0 0 0 0 0 0 0 0
intr 111 0
procs_running 7
procs_blocked 0
"""
LATER = """cpu0 1600 150 250 5100 10 9 90 250 0 0
cpu1 2900 0 450 4000 10 5 20 80 0 0
cpu2 9999 0 0 0 0 0 0 0 0 0
procs_running 2
"""
QUIET = Condition(stolen=0.0, others=0.01, waiting=0, loop_cpu_s=0.1, loop_wait=1.01)


def test_a_recorded_round_is_judged_by_the_cores_in_use() -> None:
    ticks = 100
    used, stolen = (value * ticks for value in used_and_stolen(STAT, {0, 1}))
    scale = quiet.os.sysconf("SC_CLK_TCK") / ticks
    assert (used * scale, stolen * scale) == pytest.approx((3700, 80))
    assert running(STAT) == 7
    before = Moment(100.0, *used_and_stolen(STAT, {0, 1}), 10.0, 0, 0.1, 0.1)
    # Ten seconds; 16.5 CPU seconds were used, 15 of them by the measured systems, 2.5 stolen.
    after = Moment(110.0, *used_and_stolen(LATER, {0, 1}), 25.0, 1, 0.1, 0.1)
    found = Condition.between(before, after, cores=2)
    assert (found.stolen, found.others) == pytest.approx((0.125, 0.075))
    assert found.busy(0.1) == [
        "12% of the cores' time stolen",
        "others used 8% of the cores' time",
    ]


def test_processes_that_wait_count_when_they_are_there_before_and_after() -> None:
    one = Moment(0.0, 0.0, 0.0, 0.0, 3, 0.1, 0.1)
    gone = replace(one, at=10.0, waiting=0)
    assert Condition.between(one, gone, 2).waiting == 0
    stayed = Condition.between(one, replace(one, at=10.0), 2)
    assert stayed.busy(0.1) == ["3 other processes running"]


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        ({"loop_cpu_s": 0.12}, "fixed work took 1.20 of its usual CPU time"),
        ({"loop_wait": 1.5}, "fixed work took 1.50 of its CPU time"),
    ],
)
def test_slower_cores_and_waits_show_in_fixed_work(change: dict[str, float], sign: str) -> None:
    assert QUIET.busy(0.1) == []
    assert replace(QUIET, **change).busy(0.1) == [sign]


def test_the_measured_systems_are_not_others() -> None:
    """A child's work is this program's own; that of an orphan is not."""
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    before = look(())
    subprocess.run([sys.executable, "-c", burn], check=True)
    after = look(())
    assert after.own - before.own >= 0.5
    # Named once more, it counts once.
    assert look((ProcessTree(os.getpid()),)).own - after.own < 0.5
    orphan = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    {'pass'}\n"
    orphan += "    while time.process_time() < 0.5: pass\n"
    subprocess.run([sys.executable, "-c", orphan], check=True)
    end = time.monotonic() + 60
    while (final := look(())).used - final.own - (after.used - after.own) < 0.4:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Condition]], None]:
    """Rounds of ten seconds each, in the conditions that are given, then quiet ones."""

    def set_up(conditions: list[Condition]) -> None:
        now = [0.0]
        coming = iter(conditions)
        monkeypatch.setattr(rounds.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(rounds, "look", lambda trees: None)

        def between(before: None, after: None, cores: int) -> Condition:
            now[0] += 10.0
            return next(coming, QUIET)

        monkeypatch.setattr(rounds.Condition, "between", between)

    return set_up


def test_rounds_end_with_the_last_answer(clock: Callable[[list[Condition]], None]) -> None:
    clock([])
    made = Rounds(1000.0, lambda: len(made.conditions) >= 8)
    assert list(made) == list(range(8))
    assert made.told() == "8 rounds in random order, machine quiet"
    assert not made.disturbed


def test_rounds_end_before_the_time_is_up(clock: Callable[[list[Condition]], None]) -> None:
    clock([])
    assert list(Rounds(105.0, lambda: False)) == list(range(10))


def test_there_is_one_round_however_little_time(clock: Callable[[list[Condition]], None]) -> None:
    clock([])
    assert list(Rounds(0.0, lambda: False)) == [0]


def test_busy_rounds_are_made_again(clock: Callable[[list[Condition]], None]) -> None:
    busy = replace(QUIET, others=0.4, waiting=2)
    clock([QUIET, busy, busy])
    made = Rounds(1000.0, lambda: len(made.counted) >= MIN_ROUNDS)
    assert list(made) == list(range(MIN_ROUNDS + 2))
    assert made.counted == frozenset({0, *range(3, MIN_ROUNDS + 2)})
    assert not made.disturbed
    assert made.told() == (
        "9 rounds in random order; 2 of them, on a busy machine, do not count "
        "(others used 40% of the cores' time, 2 other processes running)"
    )


def test_a_machine_that_stays_busy_is_said_to_be(clock: Callable[[list[Condition]], None]) -> None:
    """Nothing ends the rounds but the time, and they all count."""
    clock([replace(QUIET, stolen=0.1)] * 100)
    made = Rounds(200.0, lambda: True)
    assert list(made) == list(range(20))
    assert made.disturbed
    assert len(made.counted) == 20
    record = made.record()
    assert record["disturbed"]
    assert "**the machine was busy** in all of them (10% of the cores' time stolen)" in made.told()
    assert record["rounds"][0]["busy"] == ["10% of the cores' time stolen"]


def test_a_round_asks_one_question_in_turns(
    clock: Callable[[list[Condition]], None],
) -> None:
    """The first measures everything; each further one has both sides of one ratio, and no more."""
    clock([])
    asked = [Question(name, "s", name, ("limit",), at_most(1.2)) for name in "abc"]
    made = AskedRounds(asked, 300.0, 0.1)
    order, draw = list[str](), random.Random(5)
    swinging = {name: itertools.cycle([0.5, 2.0]) for name in "ab"}

    async def one(name: str) -> dict[str, float]:
        order.append(name)
        return {"s": next(swinging[name]) if name in swinging else 1.0}

    making = {name: partial(one, name) for name in ("a", "b", "c", "limit", "alone")}
    for number in made:
        order.clear()
        asyncio.run(made.measure(number, making, draw, lambda doing: None))
        if number == 0:
            assert sorted(order) == sorted(making)
        else:
            assert len(order) == 2
            assert "limit" in order
        # Until there is an interval everyone has as many rounds, and then as much time.
        rounds = [len(question.made(made.cells)) for question in made.open]
        assert max(rounds) - min(rounds) <= 1 or min(rounds) >= MIN_ROUNDS
    verdicts = {answer.question.name: answer.record()["verdict"] for answer in made.answers()}
    assert verdicts == {"a": "undecided", "b": "undecided", "c": "met"}
    counts = {question.name: len(question.made(made.cells)) for question in asked}
    assert counts["c"] < counts["a"]
    assert len(made.cells["alone"]) == 1
    assert len(made.conditions) == 30


def test_series_are_paired_by_round() -> None:
    assert paired({0, 1, 2, 4}, {0: 1.0, 2: 3.0, 4: 5.0}, {4: 50.0, 2: 30.0, 3: 40.0}) == [
        [3.0, 5.0],
        [30.0, 50.0],
    ]
