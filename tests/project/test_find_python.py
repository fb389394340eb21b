"""`make` names what is missing before it installs anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def find(root: Path, python: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python}
    if path is not None:
        environment["PATH"] = path + os.pathsep + os.environ["PATH"]
    return subprocess.run(
        ["sh", root / "build" / "find_python.sh"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def command(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_good_python_is_found(root: Path) -> None:
    run = find(root, sys._base_executable)
    assert (run.returncode, run.stdout.strip()) == (0, sys._base_executable)


def test_a_python_of_another_version_is_not_taken(root: Path, tmp_path: Path) -> None:
    old = command(tmp_path, "python", "exit 0")
    run = find(root, old)
    assert run.returncode == 1
    assert "no python3.11 or python3.12" in run.stderr
    assert "PYTHON=" in run.stderr


def test_what_a_python_lacks_is_named(root: Path, tmp_path: Path) -> None:
    bare = command(tmp_path, "python", "echo 'missing: libpython3.11.so.1.0 for /usr/bin/python'")
    run = find(root, bare)
    assert run.returncode == 1
    assert "libpython3.11.so.1.0" in run.stderr


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("getconf", "echo glibc 2.31", "glibc 2.31 is too old"),
        ("getconf", "exit 1", "glibc was not found"),
        ("uname", '[ "$1" = -s ] && echo Darwin || echo arm64', "this is Darwin on arm64"),
    ],
)
def test_an_unfit_machine_is_named(
    root: Path, tmp_path: Path, name: str, body: str, reason: str
) -> None:
    command(tmp_path, name, body)
    run = find(root, sys._base_executable, str(tmp_path))
    assert run.returncode == 1
    assert reason in run.stderr
