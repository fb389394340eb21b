"""The Python of docs/search.md runs, and its pictures are there."""

import re
from pathlib import Path

import pytest

pytest.importorskip("faiss", reason="the extra `search` is not installed")


def test_the_examples_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (root / "docs" / "search.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "docs/search.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0] == "0 image-0 0"
    for picture in re.findall(r"images/[\w-]+\.png", text):
        assert (root / "docs" / picture).is_file()
