"""The tree of errors names every one the library raises on purpose."""

import ast
import builtins
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding import errors

# Answers of the web servers, which no caller of the library meets.
ELSEWHERE = {"ApiError"}


def defined() -> dict[str, tuple[str, Path]]:
    """Every exception class that a module of the package defines: its first base, and where."""
    package = Path(errors.__file__).parent
    classes = {
        node.name: ([ast.unparse(base).rpartition(".")[2] for base in node.bases], path)
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }

    def is_exception(name: str) -> bool:
        if name in classes:
            return any(is_exception(base) for base in classes[name][0])
        found = getattr(builtins, name, object)
        return name == "HTTPException" or issubclass(found, Exception)

    return {
        name: (bases[0], path)
        for name, (bases, path) in classes.items()
        if bases and is_exception(name)
    }


def test_every_error_stands_in_errors() -> None:
    elsewhere = {name for name, (_, path) in defined().items() if path != Path(errors.__file__)}
    assert elsewhere == ELSEWHERE


def test_the_tree_is_complete() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+)(?:$|\s{2,})", line)
        if match is None:
            continue
        above = [*above[: len(match[1]) // 4], match[2]]
        drawn[match[2]] = above[-2] if len(above) > 1 else "Exception"
    raised = {name: base for name, (base, _) in defined().items() if base != "UserWarning"}
    assert drawn == {name: base for name, base in raised.items() if name not in ELSEWHERE}


def test_every_error_is_used() -> None:
    package = Path(errors.__file__).parent
    used = {
        alias.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == errors.__name__
        for alias in node.names
    }
    assert set(defined()) - ELSEWHERE <= used


@pytest.mark.parametrize("name", sorted(set(defined()) - ELSEWHERE))
def test_errors_cross_processes(name: str) -> None:
    kind = getattr(errors, name)
    arguments = {
        errors.Late: (0.5, 1.0),
        errors.ServerDied: ("lost", True),
        errors.RequestAborted: ("died twice", (3,)),
        errors.RequestRejected: ("no picture", 3),
    }
    error = kind(*arguments.get(kind, ("said",)))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_the_reason_stands_apart_from_the_row() -> None:
    refused = errors.RequestRejected("the image is empty", 3)
    assert (refused.reason, refused.row) == ("the image is empty", 3)
    assert str(refused) == "image 3: the image is empty"
    several = errors.RequestAborted("died twice", range(2, 4))
    assert (str(several), several.row, several.rows) == ("died twice", None, (2, 3))


@given(st.one_of(st.text(), st.binary(), st.integers(), st.lists(st.text())))
def test_what_is_shown_is_short_and_begins_as_the_value_does(value: object) -> None:
    text = errors.shown(value)
    assert len(text) <= 80
    assert text == repr(value) or repr(value).startswith(text.removesuffix("..."))


@pytest.mark.parametrize("value", ["x" * 20_000, b"\0" * 10**6, ["0,0,1,1"] * 5_000])
def test_long_values_are_cut(value: object) -> None:
    assert len(errors.shown(value)) == 80
