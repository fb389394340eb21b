"""What an installed engine was made of, as one hash: unchanged means nothing to build.

The code in it is found, not listed: the modules that make and gate an engine, and whatever of
this project they import, in turn.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Final

import unified_embedding

LIBRARY: Final = Path(unified_embedding.__file__).resolve().parent
# What reads the pictures and gives the truth that the gates compare with.
PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "pillow")
# What these import inside a function is a choice (of a target, of a further gate). The caller
# of `code` names what was chosen.
_CHOOSERS: Final = ("__init__.py", "engine/building.py", "engine/targets.py")


def packages() -> dict[str, str]:
    """Versions of the packages that decide the gates' figures, whatever the target."""
    return {name: package_version(name) for name in PACKAGES}


def code(modules: Iterable[str], library: Path = LIBRARY) -> dict[str, str]:
    """SHA-256 of every file of this project that `modules` depend on, by relative path.

    Followed are all imports, those inside functions too, and neighbours that a module names in
    a string (a model.py that is copied, not imported).

    Args:
        modules: dotted names.
        library: the folder of the package `unified_embedding`.
    """
    found: set[Path] = set()
    waiting = [path for name in modules for path in _files(name, library)]
    copied: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        tree = ast.parse(path.read_bytes(), filename=str(path))
        chooser = path.relative_to(library).as_posix() in _CHOOSERS
        for name in _imports(tree.body if chooser else ast.walk(tree), path, library):
            waiting += _files(name, library)
        copied |= set(_neighbours(tree, path))
    return {
        path.relative_to(library.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(found | copied)
    }


def _imports(nodes: Iterable[ast.AST], path: Path, library: Path) -> Iterator[str]:
    """Dotted names that may be modules: for `from a import b`, both a and a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(library.parent).parts[: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _files(name: str, library: Path) -> Iterator[Path]:
    """The files that importing `name` runs; none when it is not of this project."""
    first, *rest = name.split(".")
    if first != library.name:
        return
    place = library
    yield place / "__init__.py"
    for part in rest:
        place = place / part
        if place.is_dir():
            yield place / "__init__.py"
        elif place.with_suffix(".py").is_file():
            yield place.with_suffix(".py")
        else:  # An attribute.
            return


def _neighbours(tree: ast.AST, path: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = path.parent / Path(node.value).name
            if node.value.endswith(".py") and named.is_file():
                yield named
