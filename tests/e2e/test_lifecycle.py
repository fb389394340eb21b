"""Start and stop of the real tritonserver."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unified_embedding.local_server import start

pytestmark = pytest.mark.e2e


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "triton" in name}


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def python_instances(repository: Path) -> int:
    """Processes that the Python backend starts: one for each instance."""
    configs = [path.read_text() for path in repository.glob("*/config.pbtxt")]
    counts = [re.search(r"count: (\d+)", text) for text in configs if 'backend: "python"' in text]
    return sum(int(count.group(1)) for count in counts if count)


def test_sigterm_leaves_no_process_and_no_shared_memory(repository: Path, tmp_path: Path) -> None:
    before = shared_memory()
    server = start(repository, tmp_path / "log")
    stubs = children(server.process.pid)
    assert len(stubs) == python_instances(repository)
    assert shared_memory() - before
    assert server.stop() == 0
    assert [pid for pid in stubs if Path(f"/proc/{pid}").exists()] == []
    assert shared_memory() <= before


def test_a_repository_without_an_engine_says_make_engine(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model_repository"
    (folder / "unified_embedding").mkdir(parents=True)
    run = subprocess.run(
        [sys.executable, "-m", "unified_embedding.tritonserver", f"--model-repository={folder}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "run `make engine` first" in run.stderr
