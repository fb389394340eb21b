"""deploy/monitoring as files: promtool tests the rules, the dashboard is what its program writes.

That every figure in them exists on a running server is seen in test_monitoring_served.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_programs import program

RULES = "deploy/monitoring/rules.yaml"


def promtool(root: Path, *arguments: str) -> str:
    command = [program("promtool"), *arguments]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def alerts(root: Path) -> dict[str, dict]:
    groups = yaml.safe_load((root / RULES).read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_the_rules_are_valid(root: Path) -> None:
    assert "SUCCESS" in promtool(root, "check", "rules", "--lint=all", "--lint-fatal", RULES)


@pytest.mark.parametrize("tests", ["rules", "objective"])
def test_alerts_come_when_they_should_and_only_then(root: Path, tests: str) -> None:
    promtool(root, "test", "rules", f"tests/deploy/{tests}.test.yaml")


def test_each_alert_has_a_test_and_says_what_to_do(root: Path) -> None:
    files = [root / f"tests/deploy/{name}.test.yaml" for name in ("rules", "objective")]
    cases = [
        case
        for file in files
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts(root))
    for name, rule in alerts(root).items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert {"summary", "runbook"} == set(rule["annotations"]), name


def test_the_scrape_configuration_is_valid(root: Path) -> None:
    promtool(root, "check", "config", "deploy/monitoring/prometheus.yaml")


def test_the_dashboard_is_what_its_program_writes(root: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="the extra `deploy` is not installed")
    run = subprocess.run(
        [sys.executable, root / "deploy/monitoring/dashboard.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
