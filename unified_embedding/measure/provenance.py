"""What a reader needs to judge and repeat a measurement."""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from unified_embedding.client import ServerInfo
from unified_embedding.measure.processor import cpu_name
from unified_embedding.names import DEFAULT

_PACKAGES: Final = ("numpy", "pillow", "openvino", "tritonclient", "grpcio", "locust")


def provenance(root: Path, server: ServerInfo, seed: int, **more: Any) -> dict[str, Any]:
    """Commit, engine, machine, seed and command of a measurement, as JSON values.

    `root` is the checkout. engine.json enters when the engine installed there is the one that
    the server runs.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(_command()),
        "commit": commit(root),
        "seed": seed,
        "server": {**vars(server), "code_bytes": server.code_bytes},
        "engine.json": _engine_record(root, server.engine),
        "machine": machine(),
        "packages": _versions(),
        **more,
    }


def commit(root: Path) -> str:
    """The checkout's commit, with "-dirty" when files differ from it; "" outside git."""
    try:
        found = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{found}-dirty" if changed else found


def machine() -> dict[str, Any]:
    """Processor, usable cores, memory, system, and how busy the machine is right now."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _command() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _git(root: Path, *arguments: str) -> str:
    run = subprocess.run(
        ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def _engine_record(root: Path, engine: str) -> Any:
    path = root / "model_repository" / DEFAULT.embedder / "1" / "engine.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("engine") == engine else None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
