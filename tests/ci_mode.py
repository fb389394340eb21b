"""`--ci`: every test runs, and nothing is left behind.

A machine that is to run everything (.ci/run) would otherwise pass with its page tests, say,
skipped for want of a browser, and with servers that no test has stopped.
"""

import os
import re
import time
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Final

import pytest

# What a skipped test may lack on CI's own machine.
EXPECTED: Final = {
    "an NVIDIA GPU": r"NVIDIA GPU|Triton with a TensorRT backend|extra `torch-tensorrt`",
    "a CPU without native bf16": r"this CPU has native bf16",
    "a machine without a GPU": r"this machine has a GPU",
    "a machine that is not NVIDIA's image": r"this is NVIDIA's image",
    "minutes (RUN_SLOW=1)": r"RUN_SLOW=1",
    "the pictures of `make data`": r"`make data` prepares them|the emoji packages are not in the",
    "Python 3.12, which Debian 12 has not": r"no Python 3\.12 on this machine",
}
# Every process that the tests start inherits it, and so do theirs.
_MARK: Final = "UNIFIED_EMBEDDING_TESTS"
# What has been told to end may need a moment.
_PATIENCE_S: Final = 60.0


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ci",
        action="store_true",
        help="fail when a process is left behind, and when a test is skipped for want of anything "
        "but " + ", ".join(EXPECTED),
    )


def start(config: pytest.Config) -> None:
    if config.getoption("--ci"):
        os.environ[_MARK] = str(os.getpid())


def judge(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn the report of an unexpected skip into that of a failure."""
    if not config.getoption("--ci") or not report.skipped or hasattr(report, "wasxfail"):
        return
    where = report.longrepr
    reason = where[2] if isinstance(where, tuple) else str(where)
    if not any(re.search(pattern, reason) for pattern in EXPECTED.values()):
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was not run: {reason}\n(--ci: install what it needs, or put the "
            "reason on the list in tests/ci_mode.py)"
        )


def finish(session: pytest.Session) -> None:
    """Fail the session when processes that it started are still there."""
    if not session.config.getoption("--ci"):
        return
    end = time.monotonic() + _PATIENCE_S
    while (left := _left_behind()) and time.monotonic() < end:
        time.sleep(0.5)
    for number, command in left.items():
        print(f"\nleft behind: process {number}, {command}")
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left_behind() -> dict[int, str]:
    """Command lines of the living processes that carry this session's mark."""
    mark, found = f"{_MARK}={os.getpid()}".encode(), {}
    # Python's own helper for processes that were spawned; it ends with this process.
    ours = (os.getpid(), resource_tracker._resource_tracker._pid)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) not in ours and mark in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace")[:200]
        except OSError:  # It has just ended, or is another user's.
            continue
    return found
