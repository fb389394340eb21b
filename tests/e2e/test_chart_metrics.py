"""What the chart's autoscaling asks Prometheus for is there on the running server."""

import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("helm_python", reason="the extra `deploy` is not installed")

import helm_python as helm
import yaml

pytestmark = pytest.mark.e2e
METRIC = re.compile(r"\b([a-z_]+)\{([^}]*)\}")


def test_every_series_that_scales_exists(root: Path, server: Any) -> None:
    values = helm.parse_set_string(
        "autoscaling.enabled=true,autoscaling.picturesPerSecond=300,serviceMonitor.enabled=true"
    )
    with helm.Chart.load(root / "deploy/chart") as chart:
        files = chart.render(values, name="blue", namespace="embed")
    (text,) = [text for name, text in files.items() if name.endswith("scaledobject.yaml")]
    triggers = yaml.safe_load(text)["spec"]["triggers"]
    asked = [found for one in triggers for found in METRIC.findall(one["metadata"]["query"])]
    assert {name for name, _ in asked} == {
        "nv_inference_count", "nv_inference_pending_request_count", "embedder_refused_total",
    }  # fmt: skip
    with urllib.request.urlopen(server.metrics_url, timeout=60) as answer:
        there = METRIC.findall(answer.read().decode())
    for name, selector in asked:
        # namespace and job are Prometheus' own.
        matchers = re.findall(r'(model|reason)=(~?)"([^"]*)"', selector)
        assert matchers
        for label, operator, value in matchers:
            for wanted in value.split("|") if operator else [value]:
                assert any(
                    other == name and f'{label}="{wanted}"' in labels for other, labels in there
                ), (name, label, wanted)
