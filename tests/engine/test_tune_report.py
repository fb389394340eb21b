"""Ratios, the Pareto front and the choice, from made-up rounds."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("psutil", reason="the extra `load` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")

from unified_embedding.cli import tune
from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.engine.tuning import report as tune_report
from unified_embedding.engine.tuning.report import Seen
from unified_embedding.engine.tuning.server import Reading

CONFIG = EmbedderConfig(
    backend="python",
    kind="KIND_CPU",
    parameters={"inference_precision": "bf16", "threads": "2", "streams": "2", "slice": "4"},
)
# The machine gets slower from round to round.
INSTALLED = {number: Reading(300 - 20 * number, 5.0, 5.0 + number) for number in range(9)}


def seen(throughput: float, p50: float, instances: int = 1, noise: float = 0.0) -> Seen:
    """A setting that is `throughput` and `p50` times what is installed, give or take `noise`."""
    rounds = {
        number: Reading(
            throughput * (1 + noise * (-1) ** number) * one.images_per_s,
            one.cpu_ms,
            p50 * one.p50_ms,
        )
        for number, one in INSTALLED.items()
    }
    config = replace(CONFIG, instances=instances)
    return Seen(config, rounds, INSTALLED, frozenset(INSTALLED))


def test_ratios_are_taken_round_by_round() -> None:
    one = seen(1.1, 0.9)
    found = one.throughput
    assert (found.mean, found.low, found.high) == pytest.approx((1.1,) * 3)
    assert one.p50.high == pytest.approx(0.9)
    # A disturbed round that does not count moves neither.
    disturbed = dict(one.rounds) | {8: Reading(10, 50, 500)}
    quiet = replace(one, rounds=disturbed, counted=frozenset(range(8)))
    assert quiet.throughput.mean == pytest.approx(1.1)
    assert replace(quiet, counted=frozenset(range(9))).throughput.low < 0.9


def test_the_pareto_front_holds_what_nothing_beats_in_both() -> None:
    installed, fast, quick, worse = seen(1, 1), seen(1.2, 1.3), seen(0.9, 0.8), seen(0.95, 1.1)
    assert tune_report.front([installed, fast, quick, worse]) == [quick, installed, fast]
    assert tune_report.front([installed, seen(1, 1, 2)]) == [installed, seen(1, 1, 2)]


def test_the_fastest_keeps_a_single_callers_wait() -> None:
    found = tune.fastest([seen(1, 1), seen(1.3, 1.2), seen(1.1, 1.02)])
    assert found.throughput.mean == pytest.approx(1.1)


def test_what_is_clearly_beaten_is_measured_no_more() -> None:
    installed, best, close = seen(1, 1), seen(1.2, 1, 2, noise=0.1), seen(1.15, 1, 3, noise=0.1)
    slow, waits = seen(0.8, 1, 4), seen(1.5, 1.2, 5)
    assert tune.contenders([installed, best, close, slow, waits]) == [best, close]
    # Too few rounds beat nothing.
    few = [replace(one, counted=frozenset({0, 1})) for one in (installed, best, slow, waits)]
    assert tune.contenders(few) == few


@pytest.mark.parametrize(
    ("throughput", "p50", "taken"),
    [(1.1, 0.9, True), (1.1, 1.01, True), (1.1, 1.1, False), (1.01, 0.5, False), (0.9, 0.5, False)],
)
def test_nothing_slower_is_installed(throughput: float, p50: float, taken: bool) -> None:
    assert tune.better(seen(throughput, p50, 2)) is taken


def test_nothing_is_installed_that_may_be_slower() -> None:
    doubtful = seen(1.1, 0.9, 2, noise=0.3)
    assert [one["verdict"] for one in tune.verdicts(doubtful)] == ["undecided", "met"]
    assert not tune.better(doubtful)
    assert not tune.better(replace(seen(1.5, 0.5), counted=frozenset({0, 1})))


def test_every_setting_answers_with_the_same_bits_and_takes_every_request() -> None:
    settings = [setting for knob in tune.KNOBS.values() for setting in tune.others(CONFIG, knob)]
    assert len(settings) > 8
    assert all(one.parameters["inference_precision"] == "bf16" for one in settings)
    assert all(one.max_batch_size >= 16 and one.instances >= 1 for one in settings)
    assert CONFIG not in settings


def test_a_plans_batch_and_threads_are_not_swept() -> None:
    plan = EmbedderConfig(backend="tensorrt", kind="KIND_GPU", instances=2)
    swept = {name: tune.others(plan, knob) for name, knob in tune.KNOBS.items()}
    assert swept["slice"] == swept["batch"] == []
    assert [one.instances for one in swept["instances"]] == [1, 3]
    assert all(one.queue_delay_us > 0 for one in swept["delay"])


def test_the_plot_has_a_dot_for_every_setting_told_by_its_row() -> None:
    settings = [seen(1, 1), seen(1.2, 0.9), *(seen(0.9, 1 + row / 50) for row in range(1, 12))]
    chart = ElementTree.fromstring(tune_report.plot(settings))
    svg = "{http://www.w3.org/2000/svg}"
    width, height = map(float, chart.attrib["viewBox"].split()[2:])
    dots = [dot for dot in chart.iter(f"{svg}use") if "fill: #" in dot.get("style", "")]
    # The front is one setting here, drawn as a line's only dot too; three dots are the legend's.
    assert len(dots) - 3 == 14
    assert len({dot.attrib["style"] for dot in dots}) == 3
    assert {str(row) for row in range(1, 14)} <= {text.text for text in chart.iter(f"{svg}text")}
    for dot in dots:
        assert 0 < float(dot.attrib["x"]) < width
        assert 0 < float(dot.attrib["y"]) < height
