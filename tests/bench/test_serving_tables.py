"""Ratios and tables of `make bench`, from a made-up record."""

from typing import Any

import pytest

from unified_embedding.load.serving_tables import (
    CONCURRENCY,
    LITSERVE,
    OURS,
    ROOFLINE,
    TORCH,
    key,
    markdown,
    ratios,
)


def cell(images_per_s: float, p50_ms: float, cpu_ms: float) -> dict[str, Any]:
    figures = {"images_per_s": images_per_s, "p50_ms": p50_ms, "p99_ms": 2 * p50_ms}
    return {"median": {**figures, "cpu_ms": cpu_ms, "memory_mb": 300.0}}


@pytest.fixture
def record() -> dict[str, Any]:
    cells = {key(ROOFLINE, 0, 1): {"median": {"images_per_s": 400, "cpu_ms": 4, "memory_mb": 99}}}
    for users in CONCURRENCY:
        cells[key(OURS, users, 1)] = cell(330, 6.0 * users, 4.4)
        cells[key(LITSERVE[0], users, 1)] = cell(300, 10.0 * users, 5.0)
        cells[key(LITSERVE[1], users, 1)] = cell(275, 8.0 * users, 5.0)
        cells[key(TORCH, users, 1)] = cell(110, 40.0 * users, 30.0)
    cells[key(OURS, 8, 16)] = cell(350, 300, 4.2)
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
        "cells": cells,
        "stages": stages,
        "poisson": {OURS: {"rate": 240.0}, LITSERVE[0]: {"rate": 160.0}},
    }


def test_every_ratio_is_held_against_its_target(record: dict[str, Any]) -> None:
    found = {one.name: (one.value, one.met) for one in ratios(record)}
    assert found == {
        "server CPU-ms / roofline, 32 callers": (pytest.approx(1.1), True),
        "the same with 16 images a request": (pytest.approx(1.05), True),
        "images/s / LitServe at its best, 32 callers": (pytest.approx(1.1), True),
        "p50 of one caller / LitServe at its best": (pytest.approx(0.75), True),
        f"images/s / {TORCH}, 32 callers": (pytest.approx(3.0), False),
        "highest Poisson rate at p99 <= 100 ms / LitServe": (pytest.approx(1.5), True),
    }
    # Another embedder, other targets.
    record["embedder"]["name"] = "SE-ResNeXt101"
    assert [one.met for one in ratios(record)] == [False, False, True, True, True, True]


def test_without_a_poisson_search_there_is_no_such_ratio(record: dict[str, Any]) -> None:
    record["poisson"] = {}
    assert len(ratios(record)) == 5
    assert "Poisson" not in markdown(record)


def test_the_tables_name_what_was_missed(record: dict[str, Any]) -> None:
    text = markdown(record)
    assert "| images/s / FastAPI + torch fp32, 32 callers | 3.00 | >= 5 | missed |" in text
    assert "| roofline | - | - | 400.0 | - | - | - | 4.00 | 1.00 | 99 |" in text
    assert (
        "| LitServe, 1 worker | 8 | 1 | 300.0 | 0.91 | 80.0 | 160.0 | 5.00 | 1.25 | 300 |" in text
    )
    # A stage that one load did not have is not a zero.
    assert "| engine: queue, ms of a mean request | - | 7.00 |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| our server |")}
    assert widths == {3, 4, 11}  # its rate, its stages, its row of figures
