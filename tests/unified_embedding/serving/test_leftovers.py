"""What a dead server left is removed; what a living one has, and what is not ours, is not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unified_embedding.serving.leftovers import clean

# Claims its names, makes a file, starts a process that inherits the mark, and waits.
PROGRAM = """
import pathlib, subprocess, sys, time
from unified_embedding.serving.leftovers import claim
folder = pathlib.Path(sys.argv[1])
prefix = claim(folder)
(folder / f"{prefix}region").touch()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
print(prefix, child.pid, flush=True)
time.sleep(600)
"""


class Holder:
    """A process that has files in the folder, and its child."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", PROGRAM, str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.prefix, child = self.process.stdout.readline().split()
        self.child = int(child)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def kill_child(self) -> None:
        # The pipe closes when the last process that holds it has ended.
        assert self.process.stdout is not None
        os.kill(self.child, signal.SIGKILL)
        self.process.stdout.read()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    one = Holder(tmp_path)
    yield one
    for pid in (one.process.pid, one.child):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    one.process.wait()
    assert one.process.stdout is not None
    one.process.stdout.close()


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def test_a_server_keeps_its_files_until_its_last_process_has_ended(
    holder: Holder, tmp_path: Path
) -> None:
    files = {f"{holder.prefix}server", f"{holder.prefix}region"}
    assert names(tmp_path) == files
    clean(tmp_path)
    assert names(tmp_path) == files
    holder.kill()
    clean(tmp_path)
    assert names(tmp_path) == files
    holder.kill_child()
    clean(tmp_path)
    assert names(tmp_path) == set()


def test_of_two_servers_only_the_dead_ones_files_go(holder: Holder, tmp_path: Path) -> None:
    other = Holder(tmp_path)
    other.kill()
    other.kill_child()
    assert other.process.stdout is not None
    other.process.stdout.close()
    clean(tmp_path)
    assert names(tmp_path) == {f"{holder.prefix}server", f"{holder.prefix}region"}


@pytest.mark.parametrize(
    "name",
    [
        "triton_python_backend_shm_region_1",
        "unified_embedding-1-1-region",
        "unified_embedding-server",
        "unified_embedding-1-x-server",
        "sem.mp-1",
    ],
)
def test_what_has_no_mark_of_ours_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    clean(tmp_path)
    assert names(tmp_path) == {name}


def test_marks_that_are_not_this_users_plain_files_are_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.touch()
    (tmp_path / "unified_embedding-1-1-server").symlink_to(precious)
    os.mkfifo(tmp_path / "unified_embedding-2-2-server")
    (tmp_path / "unified_embedding-3-3-server").mkdir()
    (tmp_path / "unified_embedding-1-1-region").touch()
    if os.geteuid() == 0:
        another = tmp_path / "unified_embedding-4-4-server"
        another.touch()
        os.chown(another, 12345, 12345)
    before = names(tmp_path)
    clean(tmp_path)
    assert names(tmp_path) == before


def test_a_mark_alone_is_removed_and_a_missing_folder_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "unified_embedding-1-1-server").touch()
    clean(tmp_path)
    assert names(tmp_path) == set()
    clean(tmp_path / "missing")
