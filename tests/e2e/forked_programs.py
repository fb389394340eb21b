"""Run `unified-embedding` again and again, each time in a process of its own that can be killed.

A program: it imports the commands once, then reads a line of JSON for each run and forks. A run may
name the move before which its process is killed by SIGKILL: the n-th audit event of a kind with a
file of that name.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Done:
    """How a run ended; `status` is negative for a signal."""

    status: int
    output: str


class Programs:
    """Runs command lines; use `running`."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process, self._log = process, log

    def run(self, words: list[str], kill: tuple[str, str, int] | None = None) -> Done:
        """Run `unified-embedding WORDS`; killed before the move that is named, if it gets there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._log.write_text("")
        request = {"words": words, "kill": kill, "log": str(self._log)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return Done(status, self._log.read_text())


@contextmanager
def running(folder: Path, log: Path, **environment: str) -> Iterator[Programs]:
    """Programs that run in `folder`."""
    # Leaving the block closes its input, at whose end it ends.
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", **environment},
    ) as process:
        yield Programs(process, log)


def kill_before(event: str, name: str, number: int) -> None:
    """Kill this process before the move."""
    seen = 0

    def hook(happens: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if happens != event:
            return
        touched = (str(value) for value in arguments[:2] if isinstance(value, str | Path))
        if any(os.path.basename(path) == name for path in touched):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    # Imported before the first fork; nothing here starts a thread.
    from unified_embedding.cli import backfill, index, main, search, status  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(request["log"], "wb") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.argv = ["unified-embedding", *request["words"]]
            if request["kill"]:
                kill_before(*request["kill"])
            code = 1
            try:
                main.program()
            except SystemExit as ending:
                code = ending.code if isinstance(ending.code, int) else bool(ending.code)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
