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
INSTALLED = [Reading(300, 5.0, 5.0), Reading(200, 5.0, 7.0), Reading(100, 5.0, 10.0)]


def seen(throughput: float, p50: float, instances: int = 1) -> Seen:
    """A setting that is always `throughput` and `p50` times what is installed."""
    rounds = [
        Reading(throughput * one.images_per_s, one.cpu_ms, p50 * one.p50_ms) for one in INSTALLED
    ]
    return Seen(replace(CONFIG, instances=instances), rounds, INSTALLED)


def test_ratios_are_taken_round_by_round() -> None:
    one = seen(1.1, 0.9)
    assert one.throughput == pytest.approx(1.1)
    assert one.p50 == pytest.approx(0.9)
    # One disturbed round moves neither.
    disturbed = [one.rounds[0], Reading(10, 50, 500), one.rounds[2]]
    assert Seen(CONFIG, disturbed, INSTALLED).throughput == pytest.approx(1.1)


def test_the_pareto_front_holds_what_nothing_beats_in_both() -> None:
    installed, fast, quick, worse = seen(1, 1), seen(1.2, 1.3), seen(0.9, 0.8), seen(0.95, 1.1)
    assert tune_report.front([installed, fast, quick, worse]) == [quick, installed, fast]
    assert tune_report.front([installed, seen(1, 1, 2)]) == [installed, seen(1, 1, 2)]


def test_the_fastest_keeps_a_single_callers_wait() -> None:
    assert tune.fastest([seen(1, 1), seen(1.3, 1.2), seen(1.1, 1.02)]).throughput == pytest.approx(
        1.1
    )


@pytest.mark.parametrize(
    ("throughput", "p50", "taken"),
    [(1.1, 0.9, True), (1.1, 1.01, True), (1.1, 1.1, False), (1.01, 0.5, False), (0.9, 0.5, False)],
)
def test_nothing_slower_is_installed(throughput: float, p50: float, taken: bool) -> None:
    assert tune.not_slower(seen(1, 1), seen(throughput, p50, 2)) is taken


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
