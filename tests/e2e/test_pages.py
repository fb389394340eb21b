"""What README.md and docs/search.md tell a reader to type, run in that order on a real server.

With UPDATE_DOCS=1 the pages' sample outputs are written from what was printed.
"""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is missing")
pytest.importorskip("faiss", reason="the extra `search` is not installed")

pytestmark = pytest.mark.e2e

UPDATE = os.environ.get("UPDATE_DOCS") == "1"
PAGES = ("README.md", "docs/search.md")
# The others build, start servers, or never end: tests of their own run them.
RUN = re.compile(r"python clients/(status|embed|backfill|index|search)\.py |curl ")
NUMBER = re.compile(r"-?\d[\d.]*(?:e-\d+)?")
# What needs more than the server: the databases' tests run it.
ELSEWHERE = re.compile(r" && cd out/pg .*")


def paragraphs(page: str) -> Iterator[str]:
    """The indented blocks of a page, divided at empty lines."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE):
        yield re.sub(r"^    ", "", block, flags=re.MULTILINE).replace("\\\n", "")


def commands(page: str) -> list[str]:
    found = []
    for block in paragraphs(page):
        lines = [block] if block.startswith("curl") else block.splitlines()
        found += [ELSEWHERE.sub("", line) for line in lines if RUN.match(line)]
    return found


@pytest.fixture(scope="module")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh clone to the commands; what they write stays in it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("clients", "demo"):
        shutil.copytree(root / name, folder / name)
    return folder


class Shell:
    """Runs a line as a reader's activated shell does, against the session's server."""

    def __init__(self, clone: Path, server: Any) -> None:
        self.clone, self.server = clone, server

    def __call__(self, line: str) -> str:
        here = {
            "http://127.0.0.1:8000": self.server.http_url,
            "127.0.0.1:8001": self.server.grpc_url,
        }
        for named, real in here.items():
            line = line.replace(named, real)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "UNIFIED_EMBEDDING_URL": self.server.grpc_url}
        run = subprocess.run(
            ["bash", "-ec", line], cwd=self.clone, env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
        return run.stdout


@pytest.fixture(scope="module")
def shell(clone: Path, server: Any) -> Shell:
    return Shell(clone, server)


@pytest.fixture(scope="module")
def printed(root: Path, shell: Shell) -> dict[str, str]:
    """What every command of the pages printed, in the reader's order; each ended with 0."""
    lines = [line for page in PAGES for line in commands((root / page).read_text())]
    assert {"curl", "status", "embed", "backfill", "index", "search"} <= {
        (RUN.match(line)[1] or "curl")  # type: ignore[index]
        for line in lines
    }
    return {line: shell(line) for line in lines}


def test_no_command_writes_where_an_earlier_one_wrote(root: Path) -> None:
    text = "\n".join(line for page in PAGES for line in commands((root / page).read_text()))
    written = re.findall(r"--out (\S+)", text)
    assert len(written) == len(set(written)) > 3


def test_every_command_of_the_pages_runs(printed: dict[str, str], clone: Path) -> None:
    text = "\n".join(printed)
    for name in re.findall(r"--out (\S+)", text):
        assert (clone / name).exists(), name


def test_the_python_example_prints_what_the_readme_says(
    root: Path,
    clone: Path,
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    promised = block.rsplit("# ", 1)[1].strip()
    monkeypatch.chdir(clone)
    exec(compile(block.replace("127.0.0.1:8001", server.grpc_url), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == promised


def test_curl_prints_the_vector_that_the_readme_shows(root: Path, printed: dict[str, str]) -> None:
    (out,) = [text for line, text in printed.items() if line.startswith("curl")]
    page = (root / "README.md").read_text()
    shown = re.search(r"```text\n(\[1, 1280\].*?)```", page, re.DOTALL)
    assert shown
    if UPDATE:
        (root / "README.md").write_text(page.replace(shown[1], out))
        return
    real, said = ([float(one) for one in NUMBER.findall(text)] for text in (out, shown[1]))
    assert len(real) == 6
    # An engine of another precision rounds differently.
    assert real == pytest.approx(said, abs=0.2)


def test_the_server_has_every_metric_that_the_pages_name(
    root: Path, server: Any, printed: dict[str, str]
) -> None:
    page = (root / "docs/serving.md").read_text()
    named = set(re.findall(r"\bnv_\w+", page))
    assert named
    with urllib.request.urlopen(server.metrics_url, timeout=60) as answer:
        told = set(re.findall(r"^(nv_\w+)", answer.read().decode(), re.MULTILINE))
    assert named <= told


def test_the_search_that_the_page_shows_finds_what_it_shows(
    root: Path, printed: dict[str, str], shell: Shell
) -> None:
    page = (root / "docs/search.md").read_text()
    (block,) = [block for block in paragraphs(page) if block.startswith("$ python")]
    command, _, shown = block.partition("\n")
    out = shell(f"COLUMNS=100 {command.removeprefix('$ ')}")
    if UPDATE:
        indented = [
            re.sub(r"^", "    ", text, flags=re.M) for text in (shown.strip("\n"), sample(out))
        ]
        (root / "docs/search.md").write_text(page.replace(*indented))
        return
    first, *_, last = sample(out).strip().splitlines()
    assert shown.split()[:4] == first.split()
    assert shown.strip().endswith(last.strip())
    # An engine of another precision flips up to 3 % of the bits (the gates' worst picture).
    assert hits(shown)[0][1] == hits(out)[0][1]
    for (bits, _), (found, _) in zip(hits(shown), hits(out), strict=True):
        assert abs(bits - found) <= 0.03 * 1280


def sample(out: str) -> str:
    """What was printed as the page shows it: without rules, and without times."""
    lines = [line.rstrip() for line in out.strip("\n").splitlines() if line.strip(" ─━")]
    return re.sub(r"[\d.]+ ms", "... ms", "\n".join(lines))


def hits(text: str) -> list[tuple[int, str]]:
    """Distance and id of each hit of a table."""
    rows = re.findall(r"^ *\d+ +(\d+) .* (\S+)$", text, re.MULTILINE)
    return [(int(bits), name) for bits, name in rows]
