"""Answers and tables of `make bench`, from made-up rounds."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

pytest.importorskip("psutil", reason="the extra `load` is not installed")

from unified_embedding.load import targets
from unified_embedding.load.serving_tables import (
    CONCURRENCY,
    LITSERVE,
    OURS,
    ROOFLINE,
    TORCH,
    key,
    markdown,
    poisson_key,
    poisson_question,
    questions,
)
from unified_embedding.measure.paired import at_least, at_most
from unified_embedding.measure.questions import Answer, Cells, Question, medians, ratio_table

ROUNDS = frozenset(range(8))


def cell(
    images_per_s: float, p50_ms: float, cpu_ms: float, rounds: Iterable[int] = ROUNDS
) -> dict[int, dict[str, float]]:
    """A machine whose speed changes by half from round to round."""
    found = {}
    for number in rounds:
        slow = 1 + number % 3 / 4
        found[number] = {
            "images_per_s": images_per_s / slow,
            "p50_ms": p50_ms * slow,
            "p99_ms": 2 * p50_ms * slow,
            "cpu_ms": cpu_ms * slow,
            "memory_mb": 300.0 + number,
        }
    return found


@pytest.fixture
def cells() -> Cells:
    found = {key(ROOFLINE, 0, 1): cell(400, 1, 4.0)}
    for users in CONCURRENCY:
        found[key(OURS, users, 1)] = cell(330, 6.0 * users, 4.4)
        found[key(LITSERVE[0], users, 1)] = cell(300, 10.0 * users, 5.0)
        found[key(LITSERVE[1], users, 1)] = cell(275, 8.0 * users, 5.0)
        found[key(TORCH, users, 1)] = cell(110, 40.0 * users, 30.0)
    found[key(OURS, 8, 16)] = cell(350, 300, 4.16)
    found[poisson_key(OURS)] = {number: {"per_s": 240.0} for number in range(1, 8)}
    found[poisson_key(LITSERVE[0])] = {number: {"per_s": 160.0} for number in range(1, 8)}
    return found


def asked(embedder: str) -> list[Question]:
    return [*questions(embedder), poisson_question(embedder, 100.0, LITSERVE[0])]


def answered(questions: Iterable[Question], cells: Cells) -> list[Answer]:
    answers = [one.answer(cells, ROUNDS) for one in questions]
    return [one for one in answers if one]


def test_every_question_is_answered_by_paired_rounds(cells: Cells) -> None:
    found = {}
    for one in answered(asked("Lite0"), cells):
        record = one.record()
        # The machine's changes are in both sides: nothing is left of them.
        assert record["high"] - record["low"] < 1e-9
        found[record["name"]] = (round(record["ratio"], 3), record["verdict"], record["rounds"])
    assert found == {
        "server CPU-ms / roofline, 32 callers": (1.1, "missed", 8),
        "the same, 16 images a request": (1.04, "met", 8),
        "the same, 1 caller": (1.1, "met", 8),
        # Beside the better one of LitServe's settings: one worker here, two workers below.
        "images/s / LitServe at its best, 32 callers": (1.1, "missed", 8),
        "p50 of one caller / LitServe at its best": (0.75, "met", 8),
        "images/s / FastAPI + torch fp32, 32 callers": (3.0, "missed", 8),
        "highest Poisson rate at p99 <= 100 ms / LitServe, 1 worker": (1.5, "met", 7),
    }


def test_another_embedder_has_other_targets(cells: Cells) -> None:
    se = questions("SE-ResNeXt101")
    assert se[0].target == at_most(1.03)
    assert {name for name in targets.SERVING} >= {"Lite0", "SE-ResNeXt101", "SE-ResNeXt101 int8"}
    assert questions("Lite0")[3].target == at_least(1.15)


def test_rounds_that_do_not_count_are_left_out(cells: Cells) -> None:
    (question, *_) = questions("Lite0")
    cells[question.ours][7]["cpu_ms"] = 100.0
    some = question.answer(cells, frozenset(range(7)))
    every = question.answer(cells, ROUNDS)
    assert some is not None
    assert every is not None
    assert some.record()["high"] == pytest.approx(1.1)
    assert every.record()["high"] > 1.5


def test_too_few_rounds_have_no_bounds(cells: Cells) -> None:
    (question, *_) = questions("Lite0")
    for name, rounds in cells.items():
        cells[name] = {number: rounds[number] for number in (1, 2)}
    found = question.answer(cells, ROUNDS)
    assert found is not None
    record = json.loads(json.dumps(found.record()))
    assert (record["low"], record["high"], record["verdict"]) == (None, None, "undecided")
    assert not found.settled(0.04)


def test_each_question_has_quiet_rounds_of_its_own(cells: Cells) -> None:
    """Where they are too few all of its rounds count, and it says so and stays open."""
    (question, *_, other) = questions("Lite0")
    for name in other.theirs:
        cells[name] = cell(110, 40.0, 30.0, range(4, 12))
    cells[other.ours] = cell(330, 6.0, 4.4, range(12))
    busy, calm = (one.answer(cells, ROUNDS - {0}) for one in (other, question))
    assert busy is not None
    assert calm is not None
    assert (busy.rounds, busy.busy) == (8, True)
    assert (calm.rounds, calm.busy) == (7, False)
    assert calm.settled(0.04)
    assert not busy.settled(0.04)
    busy_row, calm_row = list(ratio_table([busy.record(), calm.record()]))[2:]
    assert busy_row.endswith("| 3.00 [3.00, 3.00] | 8 | >= 5 | missed (machine busy) |")
    assert calm_row.endswith("| 1.10 [1.10, 1.10] | 7 | <= 1.08 | missed |")


def test_of_several_peers_the_one_that_leaves_a_doubt_decides() -> None:
    """One is a little better on average, and certainly beaten; beside the other it is open."""
    ours = cell(100, 1, 1)
    close = cell(80, 1, 1)
    wide = cell(75, 1, 1)
    for number, one in wide.items():
        one["images_per_s"] *= 1.3 if number % 2 else 0.8
    cells = {"ours": ours, "close": close, "wide": wide}
    asked = Question("ratio", "images_per_s", "ours", ("close", "wide"), at_least(1.15))
    found = asked.answer(cells, ROUNDS)
    assert found is not None
    alone = [
        Question("", "images_per_s", "ours", (name,), at_least(1.15)).answer(cells, ROUNDS)
        for name in ("close", "wide")
    ]
    assert [one and one.record()["verdict"] for one in alone] == ["met", "undecided"]
    assert alone[0]
    assert alone[1]
    assert alone[0].interval.mean < alone[1].interval.mean
    assert found.interval == alone[1].interval
    # Missed beside one is missed, however well it does beside the other.
    cells["close"] = cell(95, 1, 1)
    found = asked.answer(cells, ROUNDS)
    assert found is not None
    assert found.record()["verdict"] == "missed"


def result(cells: Cells, told: str = "8 rounds in random order, machine quiet") -> dict[str, Any]:
    answers = answered(asked("Lite0"), cells)
    stages = {
        "1 callers x 1": {
            "stages_ms": {"decode": 2.5, "engine": 3.25},
            "cpu_ms_per_image_by_process": {"tritonserver": 0.5},
            "mean_batch": {"embedder": 1.0},
        },
        "32 callers x 1": {
            "stages_ms": {"decode": 20.0, "engine: queue": 7.0, "engine": 40.0},
            "cpu_ms_per_image_by_process": {"tritonserver": 0.25},
            "mean_batch": {"embedder": 12.5},
        },
    }
    return {
        "embedder": {"name": "Lite0", "slo_p99_ms": 100.0},
        "engine.json": {"engine": "openvino-bf16-0123456789ab"},
        "ratios": [one.record() for one in answers],
        "rounds": {"told": told},
        "medians": medians(cells, ROUNDS),
        "stages": stages,
    }


def test_the_tables_show_intervals_and_verdicts(cells: Cells) -> None:
    text = markdown(result(cells))
    assert (
        "| images/s / FastAPI + torch fp32, 32 callers | 3.00 [3.00, 3.00] | 8 | >= 5 | missed |"
        in text
    )
    assert "8 rounds in random order, machine quiet." in text
    # The median round, and the largest memory.
    assert "| roofline | - | - | 320.0 | - | - | - | 5.00 | 1.00 | 307 |" in text
    assert (
        "| LitServe, 1 worker | 8 | 1 | 240.0 | 0.91 | 100.0 | 200.0 | 6.25 | 1.25 | 307 |" in text
    )
    assert "| our server | 240.0 |\n| LitServe, 1 worker | 160.0 |" in text
    # A stage that one load did not have is not a zero.
    assert "| engine: queue, ms of a mean request | - | 7.00 |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| our server |")}
    assert widths == {3, 4, 11}  # its rate, its stages, its row of figures


def test_a_busy_machine_stands_beside_every_verdict(cells: Cells) -> None:
    busy = result(cells, told="the machine was busy")
    for one in busy["ratios"]:
        one["busy"] = True
    text = markdown(busy)
    rows = [line for line in text.splitlines() if " | >= " in line or " | <= " in line]
    assert len(rows) == 7
    assert all(row.endswith("(machine busy) |") for row in rows)


def test_cells_of_busy_rounds_only_are_shown_all_the_same() -> None:
    once = {key(OURS, 128, 1): cell(100, 1, 1, range(1))}
    assert medians(once, frozenset({1, 2}))[key(OURS, 128, 1)]["images_per_s"] == 100


def test_without_a_poisson_search_there_is_no_such_table(cells: Cells) -> None:
    for system in (OURS, LITSERVE[0]):
        del cells[poisson_key(system)]
    assert asked("Lite0")[-1].answer(cells, ROUNDS) is None
    assert "Poisson" not in markdown(result(cells))
