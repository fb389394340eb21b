"""Programs of the checkout, run as users run them."""

import os
import subprocess
import sys
from pathlib import Path


def run_program(
    root: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python with `arguments`, in the checkout, with wide output."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200", **environment},
    )
