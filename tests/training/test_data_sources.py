"""Fetching: kept when intact, repaired when damaged, refused when not the pinned file.

The registry's client is a small program on PATH that stands in for npm and apt-get; the real ones
need a network.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from unified_embedding.datasets.sources import EMOJI, FURNITURE, Source, fetch
from unified_embedding.datasets.store import sha256
from unified_embedding.errors import DataError

PACKAGE = b"the package file"
SOURCE = Source("npm", "@some/thing", "1.0.0", sha256(PACKAGE), len(PACKAGE), "MIT", "Somebody")


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, alone on PATH, where tests put clients."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_package_is_downloaded_once_and_a_damaged_one_again(tmp_path: Path, client: Path) -> None:
    log = tmp_path / "calls"
    install(client, "npm", f'echo "$@" >> {log}; printf "the package file" > some-thing-1.0.0.tgz')
    path, new = fetch(SOURCE, tmp_path)
    assert (path.read_bytes(), new) == (PACKAGE, True)
    assert fetch(SOURCE, tmp_path) == (path, False)
    path.write_bytes(b"damaged")
    assert fetch(SOURCE, tmp_path) == (path, True)
    assert path.read_bytes() == PACKAGE
    assert log.read_text().splitlines() == ["pack @some/thing@1.0.0"] * 2


def test_other_contents_than_pinned_are_refused(tmp_path: Path, client: Path) -> None:
    install(client, "npm", 'printf "something else" > some-thing-1.0.0.tgz')
    with pytest.raises(DataError, match=f"pinned is {SOURCE.sha256}"):
        fetch(SOURCE, tmp_path)
    assert not (tmp_path / SOURCE.file).exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (SOURCE, "needs npm, which is not installed.*npm pack @some/thing@1.0.0"),
        (FURNITURE, "needs apt-get, which is not installed.*apt-get download sweethome3d"),
    ],
)
def test_absent_client_is_named_with_the_remedy(
    tmp_path: Path, client: Path, source: Source, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        fetch(source, tmp_path)


def test_file_put_in_place_by_hand_needs_no_client(tmp_path: Path, client: Path) -> None:
    (tmp_path / SOURCE.file).write_bytes(PACKAGE)
    assert fetch(SOURCE, tmp_path) == (tmp_path / SOURCE.file, False)


@pytest.mark.parametrize("script", ["echo 'E: no such package' >&2; exit 100", "exit 0"])
def test_client_that_fails_is_quoted(tmp_path: Path, client: Path, script: str) -> None:
    install(client, "apt-get", script)
    wanted = "E: no such package" if "echo" in script else "no message"
    with pytest.raises(DataError, match=rf"failed \({wanted}\)"):
        fetch(replace(SOURCE, registry="apt"), tmp_path)


def test_sources_are_pinned_and_licensed() -> None:
    for source in (FURNITURE, *EMOJI.values()):
        assert len(source.sha256) == 64
        assert source.version
        assert source.credit
    assert EMOJI["openmoji"].license == "CC-BY-SA-4.0"
    assert [d for d, s in EMOJI.items() if s.use == "evaluation only"] == ["openmoji"]
    assert not any(word in s.package for s in EMOJI.values() for word in ("apple", "facebook"))
