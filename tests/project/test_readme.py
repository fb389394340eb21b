"""What README.md tells a reader to type exists."""

import re
import subprocess
from pathlib import Path

DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def text(root: Path) -> str:
    pages = [*(root / name for name in DOCUMENTS), *sorted((root / "docs").glob("*.md"))]
    return "\n".join(page.read_text() for page in pages)


def test_every_make_target_named_exists(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:^|`|&& )\s*(?:\w+=\S+ )*make ([a-z][a-z0-9-]*)", text(root), re.M))
    assert named
    assert named <= targets


def test_make_help_lists_every_target(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {line.split()[1] for line in shown.splitlines()} == targets


def test_every_program_and_link_named_exists(root: Path) -> None:
    page = text(root)
    programs = re.findall(r"python ((?:clients|build|bench|loadtest)/\w+\.py)", page)
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (root / "README.md").read_text())
    assert programs
    for name in [*programs, *links]:
        assert (root / name).exists(), name


def test_the_three_promised_commands_stand_in_the_readme(root: Path) -> None:
    page = (root / "README.md").read_text()
    for command in (
        "make engine",
        "tritonserver --model-repository=model_repository",
        "locust -f loadtest/",
    ):
        assert command in page
