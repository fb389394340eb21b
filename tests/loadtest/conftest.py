"""Locust as users run it: a process of its own, on a folder of three small pictures."""

import csv
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Run:
    """A finished load test.

    Attributes:
        exit_code: Locust's.
        stats: Locust's own statistics by request name.
        report: our report.json; empty when none was written.
        said: everything it printed.
    """

    exit_code: int
    stats: dict[str, dict[str, str]]
    report: dict[str, Any]
    said: str

    def count(self, name: str, column: str) -> int:
        return int(self.stats[name][column])


@pytest.fixture
def locust(root: Path, tmp_path: Path) -> Any:
    """Run Locust, for two seconds with eight users unless told otherwise."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "b.JPEG", "c.png"):
        (images / name).write_bytes(name.encode())
    (images / "ATTRIBUTION.md").write_text("not a picture")

    def run(*arguments: str, **environment: str) -> Run:
        command = [sys.executable, "-m", "locust", "-f", f"{root}/loadtest/", "--headless"]
        command += ["-u", "8", "-r", "8", "-t", "2s", "--only-summary", "--csv", "locust"]
        port = free_port()
        result = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(root),
                "LOADTEST_IMAGES": str(images),
                "LOADTEST_REPORT": "report",
                # Several checkouts may run their tests at once on one machine.
                "LOCUST_MASTER_BIND_PORT": str(port),
                "LOCUST_MASTER_NODE_PORT": str(port),
                **environment,
            },
        )
        file = tmp_path / "locust_stats.csv"
        rows = csv.DictReader(file.read_text().splitlines()) if file.exists() else []
        stats = {row["Name"]: row for row in rows if row["Name"] != "Aggregated"}
        record = tmp_path / "report" / "report.json"
        report = json.loads(record.read_text()) if record.exists() else {}
        return Run(result.returncode, stats, report, result.stdout + result.stderr)

    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
