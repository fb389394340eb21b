"""Saves against a full disk, SIGKILL and readers in other processes: real ones, counted."""

import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.errors import CodeIndexError
from unified_embedding.index import Batch, CodeIndex, Origin, Settings

ORIGIN = Origin("0123456789ab", "openvino-fp32-aaaaaaaaaaaa")
HANG = 300  # seconds; nothing here takes a tenth of it


def names(rows: Any) -> list[str]:
    return [f"r{row}" for row in rows]


# argv: folder, first row. Adds a row and saves, for ever; says each save that returned.
SAVER = """
import sys
from pathlib import Path
import numpy as np
from unified_embedding.index import CodeIndex
folder, first = Path(sys.argv[1]), int(sys.argv[2])
index = CodeIndex.open(folder)
codes = np.random.default_rng(7).integers(0, 256, (20_000, 32), dtype=np.uint8)
while True:
    index.add([f"r{first}"], codes[first : first + 1], index.header.origin)
    first += 1
    index.save()
    print(first, flush=True)
"""


def saver(folder: Path, first: int) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", SAVER, str(folder), str(first)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    assert said, f"the saver ended with {process.wait(HANG)}"
    return said


def made(folder: Path, kind: Any, rows: int = 1000) -> NDArray[np.uint8]:
    codes = np.random.default_rng(7).integers(0, 256, (20_000, 32), dtype=np.uint8)
    batch = Batch(names(range(rows)), codes[:rows])
    CodeIndex.build(folder, [batch], ORIGIN, 256, settings=Settings(kind=kind))
    return codes


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_killed_saves_lose_nothing(tmp_path: Path, kind: str) -> None:
    """SIGKILL at any moment of a save: what an earlier save said is there, and opens."""
    codes, rows = made(tmp_path / "i", kind), 1000
    dice = random.Random(kind)
    for _ in range(15 if os.environ.get("RUN_SLOW") else 3):
        with saver(tmp_path / "i", rows) as process:
            for _ in range(dice.randrange(1, 4)):
                told = int(line(process))
            # Somewhere within the next save, which takes some milliseconds.
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(dice.random() / 50)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=HANG)
        index = CodeIndex.open(tmp_path / "i", check=True)
        rows = len(index)
        assert rows >= told
        found = index.search(codes[:rows:37], ORIGIN, k=1, exact=True)
        assert np.array_equal(found.rows[:, 0], np.arange(0, rows, 37))
    index.save()
    assert len({path.name[:6] for path in (tmp_path / "i").glob("0*")}) == 1
    assert not list((tmp_path / "i").glob(".header*"))


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_a_full_disk_refuses_the_save_and_loses_nothing(tmp_path: Path, kind: str) -> None:
    codes = made(tmp_path / "i", kind)
    index = CodeIndex.open(tmp_path / "i")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "i").iterdir()}
    rows = 1000
    # Too little by much and by the last bytes of each file in turn.
    for limit in (300, 1000, *sorted({size for size in sizes.values() if size > 1000})):
        index.add(names(range(rows, rows + 10)), codes[rows : rows + 10], ORIGIN)
        rows += 10
        with file_limit(limit), pytest.raises(CodeIndexError, match=r"cannot be written.*free"):
            index.save()
        assert {path.name: path.stat().st_size for path in (tmp_path / "i").iterdir()} == sizes
        assert len(CodeIndex.open(tmp_path / "i")) == 1000
        assert len(index) == rows
    index.save()
    again = CodeIndex.open(tmp_path / "i", check=True)
    assert again.search(codes[:rows], ORIGIN, k=1, exact=True).rows[:, 0].tolist() == [*range(rows)]


def test_a_full_disk_refuses_a_build_and_leaves_no_file(tmp_path: Path) -> None:
    with file_limit(20_000), pytest.raises(CodeIndexError, match="cannot be written"):
        made(tmp_path / "i", "ivf")
    assert [path.name for path in (tmp_path / "i").iterdir()] == [".lock"]
    made(tmp_path / "i", "ivf")


READER = """
import sys
from pathlib import Path
from unified_embedding.index import CodeIndex
least, seen = 0, set()
for _ in range(int(sys.argv[2])):
    index = CodeIndex.open(Path(sys.argv[1]))
    assert len(index) >= least, (len(index), least)
    least = len(index)
    seen.add(index.header.generation)
print(len(seen))
"""


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_every_opening_during_another_process_saves_succeeds(tmp_path: Path, kind: str) -> None:
    made(tmp_path / "i", kind)
    program = [sys.executable, "-c", READER, str(tmp_path / "i"), "150"]
    with saver(tmp_path / "i", 1000) as process:
        line(process)
        readers = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        outs = [reader.communicate(timeout=HANG)[0] for reader in readers]
        assert [reader.returncode for reader in readers] == [0, 0]
        assert process.poll() is None
        process.kill()
        process.communicate(timeout=HANG)
    generations = [int(out) for out in outs]
    print(f"150 openings each met {generations} generations")
    assert min(generations) > 1
