"""Carry out one step on a folder of indexes, killed before each of its moves in turn.

A program of its own: `python kill_steps.py FOLDER STEP`. For every move that the step makes on the
file system, a copy of FOLDER is made and a child does the step there, killed by SIGKILL before that
move. What a search finds then, and after the step is repeated, is printed as a line of JSON.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unified_embedding.index import Batch, CodeIndex, Origin
from unified_embedding.index.active import Active
from unified_embedding.index.following import activate, open_index, remove

BLUE, GREEN = Origin("b" * 12, "engine"), Origin("9" * 12, "engine")
DIM = 32
MOVES = {"open", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
# Those that change what is searched; the files of a new generation are another test's.
CHANGE = ("active.json", ".active", "header.json", ".header", ".lock", "green", "blue", ".removed")


def codes(origin: Origin, count: int) -> np.ndarray:
    """Codes uint8 [count, 4] of one embedder: those of two have nothing to do with each other."""
    seed = int(origin.version[0], 16)
    return np.random.default_rng(seed).integers(0, 256, (count, DIM // 8), dtype=np.uint8)


def batch(origin: Origin, start: int, stop: int) -> Batch:
    return Batch([f"row {n}" for n in range(start, stop)], codes(origin, stop)[start:stop])


def add(folder: Path) -> None:
    """Add the rows that are not there, as `index add` does."""
    index = CodeIndex.open(folder)
    origin = index.header.origin
    if missing := [n for n in range(40) if f"row {n}" not in index]:
        index.add([f"row {n}" for n in missing], codes(origin, 40)[missing], origin)
        index.save()


def removed(folder: Path) -> None:
    """Remove an index that is there, or half removed."""
    if list(folder.parent.glob(f"*{folder.name}")):
        remove(folder)


STEPS: dict[str, Callable[[Path], Any]] = {
    "activate": lambda live: activate(live / "green"),
    "add to the active one": lambda live: add(live / "blue"),
    "build the active one anew": lambda live: CodeIndex.build(
        live / "blue", [batch(BLUE, 0, 40)], BLUE, DIM
    ),
    "build another one": lambda live: CodeIndex.build(
        live / "third", [batch(GREEN, 0, 40)], GREEN, DIM
    ),
    "remove": lambda live: removed(live / "green"),
}


def state(live: Path) -> dict[str, Any]:
    """What a search that starts now finds."""
    index = open_index(live)
    origin = index.header.origin
    rows = len(index)
    names = index.search(codes(origin, rows), origin, k=1).rows[:, 0].tolist()
    right = [index.snapshot().record(row)["id"] for row in names] == [
        f"row {n}" for n in range(rows)
    ]
    return {
        "version": origin.version,
        "stated": Active.read(live).version,
        "rows": rows,
        "right": right,
        # A temporary file of a killed change goes with the next change.
        "left": sorted(path.name for path in live.iterdir() if path.suffix != ".tmp"),
    }


def in_child(work: Callable[[], Any]) -> tuple[int, str]:
    """Do it in a process of its own: how that ended, and what it returned, as JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writing, json.dumps(repr(error)).encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitpid(pid, 0)[1], said


def killed_before(move: int, live: Path, step: Callable[[Path], Any]) -> bool:
    """Do the step, killed before its n-th move below `live`; False where it has fewer."""

    def work() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in MOVES or not str(arguments[0]).startswith(str(live)):
                return
            reads = event == "open" and arguments[1] in (None, "r", "rb")
            if reads or not Path(str(arguments[0])).name.startswith(CHANGE):
                return
            seen += 1
            if seen == move:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        step(live)

    status, said = in_child(work)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, said
    return status != 0


def main() -> None:
    source, step = Path(sys.argv[1]), STEPS[sys.argv[2]]
    move = 0
    while True:
        move += 1
        live = source.parent / f"try-{move}"
        shutil.copytree(source, live)
        killed = killed_before(move, live, step)
        ends = [in_child(lambda: state(live))]  # noqa: B023 - runs at once
        status, said = in_child(lambda: step(live) and None)  # noqa: B023
        assert status == 0, said
        ends.append(in_child(lambda: state(live)))  # noqa: B023
        for status, said in ends:
            assert status == 0, said
        after, repeated = (json.loads(said) for _, said in ends)
        print(json.dumps({"killed": killed, "after": after, "repeated": repeated}), flush=True)
        shutil.rmtree(live)
        if not killed:
            break


if __name__ == "__main__":
    main()
