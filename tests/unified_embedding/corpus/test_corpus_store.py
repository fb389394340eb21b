"""Files appear whole or not at all, on a full disk and after a kill too."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unified_embedding.corpus.store import Store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_store_writes_whole_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"two")
    (tmp_path / "out" / "a" / ".b.txt.99.tmp").write_bytes(b"half")
    assert store.read("a/b.txt") == b"two"
    assert store.sizes("a") == {"b.txt": 3}
    assert store.sizes("absent") == {}
    assert store.within("a").exists("b.txt")
    assert store.folders() == ["a"]
    store.remove("a/b.txt")
    store.remove("a/b.txt")
    assert not store.exists("a/b.txt")


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("b.txt", b"one")
    with pytest.raises(TypeError), store.create("b.txt") as file:
        file.writelines([b"tw", None])  # type: ignore[list-item]
    assert names(tmp_path) == ["b.txt"]
    assert store.read("b.txt") == b"one"


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A real limit of the kernel's, in a process of its own."""
    program = """
import resource, signal, sys
from unified_embedding.corpus.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Store(sys.argv[1]).write("a/b", b"x" * 100_000)
except OSError as error:
    print(error.strerror)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "File too large\n"
    assert names(tmp_path / "a") == []


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from unified_embedding.corpus.store import Store
with Store(sys.argv[1]).create("a/b") as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    [left] = names(tmp_path / "a")
    dead = left.partition("@")[0].rpartition(".")[2]
    mine = f".c.{os.getpid()}.tmp"
    others, old = ".d.1@elsewhere.tmp", ".e.1@elsewhere.tmp"
    for name in (mine, others, old, f".f.{dead}.tmp", ".hidden", "b.tmp"):
        (tmp_path / "a" / name).write_bytes(b"")
    os.utime(tmp_path / "a" / old, (time.time() - 90_000,) * 2)
    assert Store(str(tmp_path)).sweep("a", "absent") == 3
    assert names(tmp_path / "a") == sorted([mine, others, ".hidden", "b.tmp"])
