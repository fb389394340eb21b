"""What the wheel says that it needs: every mixture of extras must leave the server working."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version


@pytest.fixture
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def requirements(project: dict[str, Any]) -> list[tuple[str, Requirement]]:
    """Extra ("" for the core) and requirement."""
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return [(extra, Requirement(line)) for extra, lines in lists.items() for line in lines]


def test_no_extra_can_bring_what_the_embedded_server_cannot_live_with(
    project: dict[str, Any],
) -> None:
    """Triton 2.51 answers with empty tensors under numpy 2, and pyarrow 26 refuses numpy 1."""
    asked = requirements(project)
    numpy = {extra: one for extra, one in asked if one.name == "numpy"}
    assert not numpy["serve"].specifier.contains("2.0.0")
    assert numpy[""].specifier.contains("2.4.6")  # A Triton container keeps its own.
    arrows = [(extra, one) for extra, one in asked if one.name == "pyarrow"]
    assert len(arrows) >= 2
    assert [extra for extra, one in arrows if one.specifier.contains("26.0.1")] == []


def test_the_exact_versions_are_among_those_the_extras_allow(
    root: Path, project: dict[str, Any]
) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if "==" in line)
    checked = [
        (extra, one, pins[one.name.lower()])
        for extra, one in requirements(project)
        if one.name.lower() in pins
    ]
    assert len(checked) > 30
    assert [one for one in checked if not one[1].specifier.contains(Version(one[2]))] == []


def test_every_command_names_an_extra_that_there_is(project: dict[str, Any]) -> None:
    from unified_embedding.cli.main import EXTRAS

    extras = {extra for named in EXTRAS.values() for extra in named.split(",")}
    assert extras <= set(project["optional-dependencies"])
    for extra in extras:
        needed = [Requirement(line) for line in project["optional-dependencies"][extra]]
        # Without it not even --help could be shown.
        assert any(one.name == "typer" or "client" in one.extras for one in needed), extra


def test_programs_say_so_when_the_environment_is_not_active(root: Path) -> None:
    programs = [path for path in (root / "clients").glob("*.py") if path.name != "demo.py"]
    assert len(programs) == 6
    for path in programs:
        run = subprocess.run(
            [sys.executable, "-I", "-S", path], capture_output=True, text=True, check=False
        )
        assert run.returncode == 1
        assert run.stderr.startswith(f"{path.name}: this Python has no unified_embedding; ")
        assert ". .venv/bin/activate" in run.stderr
        assert len(run.stderr.splitlines()) == 1
