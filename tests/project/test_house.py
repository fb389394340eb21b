"""The rooms of the package, and which way the arrows between them point."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# From the bottom to the top: a room imports from those above it in this list only, and rooms on
# one line nothing of one another. "" are the modules that stand in no folder.
FLOORS = (
    ("",),
    ("image",),
    ("client", "index", "rendering"),
    ("corpus", "measure", "search", "serving"),
    ("api", "datasets", "engine", "gateway"),
    ("protocols",),
    ("training",),
    ("export",),
    ("evaluation",),
    ("fuzzing", "load"),
    ("cli",),
)
# The core is one floor with `image`: `spec` and the package's own names need its settings.
CORE = {"", "image"}
PACKAGE = "unified_embedding"


def test_arrows_point_one_way(root: Path) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    modules = modules_of(root)
    assert {room(name) for name in modules} == set(floor)
    back = [
        f"{name} imports {other}"
        for name, path in modules.items()
        for other in imported(path, name, frozenset(modules))
        # The package's own names show the rooms' best, and load them when they are named.
        if name != PACKAGE
        and (here := room(name)) != (there := room(other))
        and not {here, there} <= CORE
        and floor[there] >= floor[here]
    ]
    assert back == []


def test_no_two_modules_import_one_another(root: Path) -> None:
    modules = modules_of(root)
    graph = {
        name: {other for other in imported(path, name, frozenset(modules)) if other != PACKAGE}
        for name, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_what_is_imported_stands_in_the_package(root: Path) -> None:
    """Programs run by path import the package and what is installed, never one another."""
    command = ["git", "ls-files", "*.py"]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    programs = [Path(line) for line in told.stdout.splitlines()]
    outside = [path for path in programs if path.parts[0] not in (PACKAGE, "tests")]
    names = {path.stem for path in outside if path.name != "__init__.py"}
    assert {"engine", "embed", "locustfile", "serving_bench"} <= names
    found = [
        f"{path} imports {name}"
        for path in outside
        for name in absolute(ast.parse((root / path).read_bytes()))
        if name.split(".")[0] in names
    ]
    assert found == []
    paths = [
        path
        for path in programs
        if "sys.path" in (root / path).read_text() and path.name != Path(__file__).name
    ]
    assert paths == []


def modules_of(root: Path) -> dict[str, Path]:
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[-1] in sum(FLOORS, ()) else ""


@cache
def imported(path: Path, name: str, modules: frozenset[str]) -> frozenset[str]:
    """The modules of the package that `path` imports anywhere, those inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_bytes())
    names = set(absolute(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            base = f"{base}.{node.module}" if node.module else base
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    # A package whose module is named beside it was only passed through.
    found = {other for other in names if other in modules and other != name}
    return frozenset(
        other for other in found if not any(deeper.startswith(f"{other}.") for deeper in found)
    )


def absolute(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
