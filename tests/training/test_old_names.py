"""Commands that README once named by another module go on working."""

import runpy
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("compare", "--plan"),
        ("data", "--train-shots"),
        ("evaluate", "--manifest"),
        ("export", "--checkpoint"),
    ],
)
def test_the_old_name_is_the_same_program(
    name: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"unified_embedding.training.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert option in capsys.readouterr().out
