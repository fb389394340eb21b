"""The tree of errors names every one the library raises on purpose."""

import ast
import builtins
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding import errors


def raised_on_purpose() -> dict[str, str]:
    """Every exception class that a module of the package defines, and its first base."""
    package = Path(errors.__file__).parent
    classes = {
        node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }

    def is_exception(name: str) -> bool:
        if name in classes:
            return any(is_exception(base) for base in classes[name])
        found = getattr(builtins, name, object)
        return issubclass(found, Exception) and not issubclass(found, Warning)

    return {name: bases[0] for name, bases in classes.items() if bases and is_exception(name)}


def test_the_tree_is_complete() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+)(?:$|\s{2,})", line)
        if match is None:
            continue
        above = [*above[: len(match[1]) // 4], match[2]]
        drawn[match[2]] = above[-2] if len(above) > 1 else "Exception"
    assert drawn == raised_on_purpose()


@given(st.one_of(st.text(), st.binary(), st.integers(), st.lists(st.text())))
def test_what_is_shown_is_short_and_begins_as_the_value_does(value: object) -> None:
    text = errors.shown(value)
    assert len(text) <= 80
    assert text == repr(value) or repr(value).startswith(text.removesuffix("..."))


@pytest.mark.parametrize("value", ["x" * 20_000, b"\0" * 10**6, ["0,0,1,1"] * 5_000])
def test_long_values_are_cut(value: object) -> None:
    assert len(errors.shown(value)) == 80
