"""The tree of errors names every one the library raises on purpose."""

import importlib
import pkgutil
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unified_embedding
from unified_embedding import errors


def raised_on_purpose() -> dict[str, type[Exception]]:
    """Every exception class that a module of the package defines, by name; warnings are none."""
    found: dict[str, type[Exception]] = {}
    for module in pkgutil.walk_packages(unified_embedding.__path__, "unified_embedding."):
        try:
            loaded = importlib.import_module(module.name)
        except ImportError:
            continue  # Its extra is not installed.
        for name, value in vars(loaded).items():
            if (
                isinstance(value, type)
                and issubclass(value, Exception)
                and not issubclass(value, Warning)
                and value.__module__ == module.name
            ):
                found[name] = value
    return found


def test_the_tree_is_complete() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+)(?:$|\s{2,})", line)
        if match is None:
            continue
        above = [*above[: len(match[1]) // 4], match[2]]
        drawn[match[2]] = above[-2] if len(above) > 1 else "Exception"
    defined = raised_on_purpose()
    assert set(drawn) == set(defined)
    for name, parent in drawn.items():
        assert defined[name].__bases__[0].__name__ == parent, name


@given(st.one_of(st.text(), st.binary(), st.integers(), st.lists(st.text())))
def test_what_is_shown_is_short_and_begins_as_the_value_does(value: object) -> None:
    text = errors.shown(value)
    assert len(text) <= 80
    assert text == repr(value) or repr(value).startswith(text.removesuffix("..."))


@pytest.mark.parametrize("value", ["x" * 20_000, b"\0" * 10**6, ["0,0,1,1"] * 5_000])
def test_long_values_are_cut(value: object) -> None:
    assert len(errors.shown(value)) == 80
