"""Starting and stopping a real tritonserver for tests."""

import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [int(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


def assemble(root: Path, folder: Path) -> Path:
    """A model repository with the checkout's static models; the installed engine is left alone."""
    for name in ("unified_embedding", "preprocess", "binarizer"):
        shutil.copytree(root / "model_repository" / name, folder / name)
    return folder


def start(
    repository: Path, log: Path, *arguments: str
) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start tritonserver on free ports and wait until it is ready; fails with its log."""
    ports = free_ports(3)
    names = ("http", "grpc", "metrics")
    flags = [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    command = [sys.executable, "-m", "unified_embedding.tritonserver"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, f"--model-repository={repository}", *flags, *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v2/health/ready", timeout=1)
            return process, ports
        except OSError:
            time.sleep(0.2)
    process.kill()
    pytest.fail(f"tritonserver did not become ready:\n{log.read_text()[-4000:]}")


def stop(process: subprocess.Popen[bytes]) -> int:
    """SIGTERM, as an orchestrator stops it; returns the exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=60)
