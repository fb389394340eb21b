"""docs/operate.md says of every alert what it means and what to do."""

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")


def test_each_alert_has_its_row(root: Path) -> None:
    rules = yaml.safe_load((root / "deploy/monitoring/rules.yaml").read_text())
    alerts = {
        rule["alert"]: rule["labels"]["severity"]
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert len(alerts) > 5
    page = (root / "docs/operate.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert {name: severity for name, severity, _, _ in rows} == alerts
    assert len(rows) == len(alerts)


def test_each_command_of_the_page_names_values_that_the_chart_has(root: Path) -> None:
    values = yaml.safe_load((root / "deploy/chart/values.yaml").read_text())
    page = (root / "docs/operate.md").read_text()
    told = re.findall(r"--set ([\w.]+)=", page) + re.findall(r"`([a-z]\w+(?:\.\w+)+)`", page)
    keys = [key for key in told if key.split(".")[0] in values]
    assert len(keys) > 10
    for key in keys:
        place = values
        for part in key.split("."):
            assert part in place, key
            place = place[part]
