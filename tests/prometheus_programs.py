"""Prometheus' own programs, which Debian's package `prometheus` has."""

import shutil

import pytest


def program(name: str) -> str:
    """The path of promtool or prometheus; the test is skipped where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here (Debian's package prometheus)")
    return found
