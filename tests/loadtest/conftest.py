"""Locust as users run it: a process of its own, on a folder of three small pictures."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
    stats: dict[str, dict[str, Any]]
    report: dict[str, Any]
    said: str

    def count(self, name: str, column: str) -> int:
        return int(self.stats[name][column])


@pytest.fixture
def peer() -> Iterator[Any]:
    from kserve_peer import Peer, serving

    with serving(Peer(max_batch_size=4)) as running:
        yield running


@pytest.fixture
def locust(root: Path, tmp_path: Path, peer: Any) -> Any:
    """Run Locust with eight users until `peer` got `until` requests, or for its -t seconds."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.jpg", "b.JPEG", "c.png"):
        (images / name).write_bytes(name.encode())
    (images / "ATTRIBUTION.md").write_text("not a picture")

    def run(
        *arguments: str,
        until: int | None = 24,
        report: Sequence[str] = ("--json-file", "locust"),
        **environment: str,
    ) -> Run:
        command = [sys.executable, "-m", "locust", "-f", f"{root}/loadtest/", "--headless"]
        command += ["-u", "8", "-r", "8", "-t", "600s", "--only-summary", *report]
        said = tmp_path / "said"
        port = free_port()
        with said.open("wb") as stream:
            process = subprocess.Popen(
                [*command, *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
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
            if until is not None:
                # By requests, not by seconds: a busy machine takes seconds to start at all.
                while process.poll() is None and len(peer.requests) < until:
                    time.sleep(0.05)
                time.sleep(0.5)
                if process.poll() is None:
                    process.terminate()
            process.wait(600)
        # At the end of a run Locust writes this file whole; its CSV may lack the last seconds.
        rows = read_json(tmp_path / "locust.json") or []
        stats = {row["name"]: row for row in rows}
        record = read_json(tmp_path / "report" / "report.json") or {}
        return Run(process.returncode, stats, record, said.read_text())

    return run


def read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
