"""How many pods the chart's queries ask for, computed by Prometheus itself."""

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("helm_python", reason="the extra `deploy` is not installed")

import helm_python as helm
import yaml

# Three pods of release blue, one of green; each answers so many pictures a second.
RELEASES = {"blue": 3, "green": 1}
CAPACITY, RATE = 100, 150


@pytest.fixture
def triggers(root: Path) -> dict[str, dict[str, Any]]:
    values = helm.parse_set_string(
        f"autoscaling.enabled=true,autoscaling.picturesPerSecond={CAPACITY},"
        "serviceMonitor.enabled=true"
    )
    with helm.Chart.load(root / "deploy/chart") as chart:
        files = chart.render(values, name="blue", namespace="embed")
    (text,) = [text for name, text in files.items() if name.endswith("scaledobject.yaml")]
    return {one["name"]: one for one in yaml.safe_load(text)["spec"]["triggers"]}


def series(pending: int, refused: int) -> list[dict[str, str]]:
    """Counters of four minutes, a scrape each 15 s; the ensemble's own queue is empty, as it is."""
    found = []
    for release, pods in RELEASES.items():
        for pod in range(pods):
            at = f'namespace="embed",job="unified-embedding-{release}",pod="{release}-{pod}"'
            count = f'nv_inference_count{{model="unified_embedding",{at}}}'
            found.append({"series": count, "values": f"0+{RATE * 15}x16"})
            waiting = {"unified_embedding": 0, "preprocess": 1, "embedder": pending, "binarizer": 9}
            for model, requests in waiting.items():
                name = f'nv_inference_pending_request_count{{model="{model}",{at}}}'
                found.append({"series": name, "values": f"{requests}+0x16"})
            for reason, rate in (("late", refused), ("busy", 0), ("bad_input", 7), ("internal", 1)):
                name = f'embedder_refused_total{{reason="{reason}",{at}}}'
                found.append({"series": name, "values": f"0+{rate * 15}x16"})
    return found


@pytest.mark.parametrize(
    ("pending", "refused", "pods"),
    [
        # .7 of 100 is full; blue has 450 a second.
        pytest.param(0, 0, {"pictures": 7, "pending": 1, "refused": 0}, id="pictures alone"),
        pytest.param(63, 0, {"pictures": 7, "pending": 12, "refused": 0}, id="work waits"),
        pytest.param(0, 1, {"pictures": 7, "pending": 1, "refused": 4}, id="work is refused"),
    ],
)
def test_the_queries_count_this_release_and_its_inner_models(
    triggers: dict[str, dict[str, Any]], pending: int, refused: int, pods: dict[str, int],
    tmp_path: Path,
) -> None:  # fmt: skip
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here: apt-get install prometheus")
    rules = [
        {"record": f"asked:{name}", "expr": one["metadata"]["query"]}
        for name, one in triggers.items()
    ]
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "scaling", "rules": rules}]})
    )
    # KEDA divides by the threshold and rounds up (AverageValue).
    value = {
        "pictures": RATE * RELEASES["blue"],
        "pending": (pending + 1) * RELEASES["blue"],
        "refused": RELEASES["blue"] + 1 if refused else 0,
    }
    for name, count in pods.items():
        assert triggers[name]["metricType"] == "AverageValue"
        assert math.ceil(value[name] / float(triggers[name]["metadata"]["threshold"])) == count
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": series(pending, refused),
                "promql_expr_test": [
                    {
                        "expr": f"asked:{name}",
                        "eval_time": "4m",
                        "exp_samples": [{"labels": f"asked:{name}", "value": value[name]}],
                    }
                    for name in triggers
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    run = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
