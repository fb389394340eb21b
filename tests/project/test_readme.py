"""What README.md, CONTRIBUTING.md and the pages of docs/ tell a reader to type or open exists."""

import re
import subprocess
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from test_house import FLOORS, PACKAGE

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
# What a command writes, and names that stand for the reader's own.
NOT_IN_THE_CLONE = (
    "build/out*",
    "build/tuning.json",
    "docs/gpu-results*",
    "model_repository/embedder*",
    "models/NAME",
    "models/se",
)
# Names that begin like the package and are no module.
NOT_MODULES = (
    "unified_embedding.version",
    "unified_embedding.engine",
    "unified_embedding.compatible_with",
)


def text(root: Path) -> str:
    return "\n".join((root / page).read_text() for page in PAGES)


@cache
def tracked(root: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The files that a clone has (new ones too), and the folders they stand in."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    files = {name for name in told.stdout.splitlines() if (root / name).exists()}
    return frozenset(files), frozenset(str(up) for name in files for up in Path(name).parents)


@cache
def names_of_tests(root: Path) -> frozenset[str]:
    files = [root / name for name in tracked(root)[0] if name.startswith("tests/")]
    sources = [path.read_text() for path in files if path.suffix == ".py"]
    return frozenset(re.findall(r"def (test_\w+)", "\n".join(sources)))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_named_exists(root: Path, page: str) -> None:
    files, folders = tracked(root)
    top = {name.split("/")[0] for name in files if "/" in name}
    named = re.findall(r"(?<![\w./~:<-])[\w.-]+(?:/[\w.<>*-]+)+", (root / page).read_text())
    paths = {name.rstrip(".") for name in named if name.split("/")[0] in top}
    known = files | folders
    assert [
        name
        for name in sorted(paths)
        if name not in known
        and not any(fnmatch(name, pattern) for pattern in NOT_IN_THE_CLONE)
        and not ("*" in name and any(fnmatch(file, name) for file in files))
    ] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_named_without_its_folder_exists(root: Path, page: str) -> None:
    known = {Path(name).name for name in tracked(root)[0]}
    named = re.findall(r"(?<![\w./*-])[\w-]+\.py\b", (root / page).read_text())
    assert set(named) <= known


@pytest.mark.parametrize("page", PAGES)
def test_every_module_named_exists(root: Path, page: str) -> None:
    files, folders = tracked(root)
    missing = []
    for name in set(re.findall(rf"(?<![\w./]){PACKAGE}(?:\.\w+)+", (root / page).read_text())):
        # The last part may be a name inside the module.
        places = [name.replace(".", "/"), name.rpartition(".")[0].replace(".", "/")]
        module = any(f"{place}.py" in files or place in folders for place in places)
        if not module and name not in NOT_MODULES:
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_test_named_exists(root: Path, page: str) -> None:
    names = names_of_tests(root)
    files = {Path(name).stem for name in tracked(root)[0]}
    for name in re.findall(r"\btest_\w+", (root / page).read_text()):
        assert name in files or any(test.startswith(name) for test in names), name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(root: Path, page: str) -> None:
    links = re.findall(r"(?:\]\(|src=\")(?!http)([^)\s\"]+)[)\"]", (root / page).read_text())
    for link in links:
        name, _, anchor = link.partition("#")
        target = (root / page).parent / name if name else root / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


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


def test_every_page_is_linked_from_the_readme_or_another_page(root: Path) -> None:
    linked = set(re.findall(r"\]\((?:docs/)?([\w-]+\.md)", text(root)))
    assert {page.name for page in (root / "docs").glob("*.md")} <= linked


def test_the_three_promised_commands_stand_in_the_readme(root: Path) -> None:
    page = (root / "README.md").read_text()
    for command in (
        "make engine",
        "tritonserver --model-repository=model_repository",
        "locust -f loadtest/",
    ):
        assert command in page


def test_the_architecture_page_shows_the_rooms_as_the_imports_are_checked(root: Path) -> None:
    page = (root / "docs" / "architecture.md").read_text()
    block = page.split("```text\n")[1].split("```")[0]
    lines = [re.findall(r"(\w+)/", line.split("   ")[0]) for line in block.splitlines()]
    shown = [set(rooms) for rooms in reversed(lines)]
    core, image, *rest = [{room for room in floor if room} for floor in FLOORS]
    assert shown == [core, image, *rest]
