"""The Python example of README.md, run against the real server."""

import re
from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is missing")

pytestmark = pytest.mark.e2e


def test_the_example_prints_what_the_readme_says(
    server, root: Path, gallery, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    promised = block.rsplit("# ", 1)[1].strip()
    photo = gallery.role("shot")[0].path
    block = block.replace("127.0.0.1:8001", server.grpc_url).replace("photo.jpg", str(photo))
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == promised
