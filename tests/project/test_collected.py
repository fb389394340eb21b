"""`make test` runs every test that stands here."""

from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest


def test_no_folder_of_tests_is_passed_over(root: Path, pytestconfig: pytest.Config) -> None:
    """Pytest goes into no folder called `build`, for instance, and does not say so."""
    passed_over = pytestconfig.getini("norecursedirs")
    assert "build" in passed_over
    folders = {path.name for path in (root / "tests").rglob("*") if path.is_dir()}
    named = {
        name for name in folders - {"__pycache__"} for one in passed_over if fnmatch(name, one)
    }
    assert named == set()


def test_no_two_test_files_have_one_name(root: Path) -> None:
    """They are modules without packages: the second one would be an error of collection."""
    names = Counter(path.name for path in (root / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
