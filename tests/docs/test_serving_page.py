"""The systemd unit of docs/serving.md fits the launcher."""

import configparser
import re
from pathlib import Path

from unified_embedding.serving import tritonserver


def test_it_starts_the_launcher_and_leaves_it_time_to_stop(root: Path) -> None:
    (unit,) = re.findall(r"```ini\n(.*?)```", (root / "docs/serving.md").read_text(), re.DOTALL)
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit)
    service = parser["Service"]
    program, flag = service["ExecStart"].split()
    assert program.endswith("/.venv/bin/tritonserver")
    assert flag.startswith("--model-repository=/")
    assert float(service["TimeoutStopSec"]) > tritonserver._EXIT_TIMEOUT_S
    assert service["KillMode"] == "mixed"
