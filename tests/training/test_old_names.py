"""Commands that README once named by another module go on working."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("compare", "--plan"),
        ("data", "--train-shots"),
        ("evaluate", "--manifest"),
        ("export", "--checkpoint"),
    ],
)
def test_the_old_name_is_the_same_program(root: Path, name: str, option: str) -> None:
    # In a process of its own: what other tests have imported must not matter.
    run = subprocess.run(
        [sys.executable, "-m", f"unified_embedding.training.{name}", "--help"],
        cwd=root,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert option in run.stdout
