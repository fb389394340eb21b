"""The folder that the embedded Triton finds its Python backend in, made once for every user."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pytriton", reason="the extra `serve` is not installed")

from unified_embedding.errors import SetupError
from unified_embedding.serving import backends


@pytest.fixture
def root() -> Path:
    found = backends.wheel_root()
    assert found is not None
    return found


@pytest.fixture
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("private_umask")
def test_others_may_read_what_one_user_made(root: Path, tmp_path: Path) -> None:
    made = backends.folder(root, tmp_path)
    for folder in (made, made / "python"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    names = {file.name for file in (made / "python").iterdir()}
    assert {"libtriton_python.so", "triton_python_backend_stub"} <= names
    assert all(file.resolve().exists() for file in (made / "python").iterdir())
    assert [file.name for file in made.parent.iterdir()] == [made.name]


def test_it_is_made_once(root: Path, tmp_path: Path) -> None:
    first = backends.folder(root, tmp_path).stat()
    assert backends.folder(root, tmp_path).stat().st_ino == first.st_ino


def test_one_of_another_triton_is_replaced(root: Path, tmp_path: Path) -> None:
    made = backends.folder(root, tmp_path)
    stub = made / "python" / "triton_python_backend_stub"
    right = stub.resolve()
    stub.unlink()
    stub.symlink_to(tmp_path / "removed")
    assert backends.folder(root, tmp_path) == made
    assert stub.resolve() == right


def test_an_environment_that_cannot_be_written_says_who_makes_it(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "share").write_text("no folder")  # Root may write anywhere else.
    with pytest.raises(SetupError, match=r"python -m unified_embedding\.serving\.backends"):
        backends.folder(root, tmp_path)
