"""With --ci a skip that nobody expects fails a run, and so does a process that is left."""

import os
import signal
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

def test_runs(): pass

@pytest.mark.skipif(True, reason="no NVIDIA GPU here")
def test_on_a_gpu(): raise AssertionError

@pytest.mark.skip(reason="/usr/bin/chromium is not there: apt-get install chromium")
def test_page(): raise AssertionError

@pytest.fixture
def server(): pytest.skip("no server")

def test_server(server): raise AssertionError

@pytest.mark.xfail(reason="known")
def test_known(): raise AssertionError
"""

# The sleeper outlives its parent; the file is how the test that starts it ends it.
FORGETS = """
import subprocess, sys

def test_forgets(tmp_path):
    sleeper = f"{sys.executable} -c 'import time; time.sleep(3000)' & echo $! > PID"
    subprocess.run(["sh", "-c", sleeper], check=True, stdout=subprocess.DEVNULL)
"""

SPAWNS = """
import multiprocessing

def test_spawns():
    child = multiprocessing.get_context("spawn").Process(target=print)
    child.start()
    child.join()
"""


@pytest.fixture
def suite(root: Path, pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder with the project's own conftest.py."""
    pytester.path.joinpath("conftest.py").write_text((root / "tests/conftest.py").read_text())
    mode = (root / "tests/ci_mode.py").read_text()
    pytester.path.joinpath("ci_mode.py").write_text(
        mode.replace("_S: Final = 60.0", "_S: Final = 1.0")
    )
    return pytester


def with_skips(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_some=TESTS)
    suite.makepyfile(test_module="import pytest\npytest.importorskip('nowhere', reason='none')")


def test_unexpected_skips_fail_and_are_named(suite: pytest.Pytester) -> None:
    with_skips(suite)
    run = suite.runpytest_subprocess("--ci", "--continue-on-collection-errors")
    assert run.ret != 0
    run.assert_outcomes(passed=1, skipped=1, errors=3, xfailed=1)
    run.stdout.fnmatch_lines_random(
        [
            "*test_page was not run: Skipped: /usr/bin/chromium is not there: *",
            "*test_server was not run: Skipped: no server",
            "*test_module.py was not run: Skipped: none",
        ]
    )


def test_without_the_option_they_are_skipped(suite: pytest.Pytester) -> None:
    with_skips(suite)
    run = suite.runpytest_subprocess()
    assert run.ret == 0
    run.assert_outcomes(passed=1, skipped=4, xfailed=1)


def test_a_process_that_is_left_fails_the_run_and_is_named(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_forgets=FORGETS)
    try:
        run = suite.runpytest_subprocess("--ci")
    finally:
        os.kill(int(suite.path.joinpath("PID").read_text()), signal.SIGKILL)
    assert run.ret == pytest.ExitCode.TESTS_FAILED
    run.assert_outcomes(passed=1)
    run.stdout.fnmatch_lines(["left behind: process *, *python* -c import time; time.sleep(3000)*"])


def test_what_python_itself_starts_for_spawned_processes_is_not_left(
    suite: pytest.Pytester,
) -> None:
    suite.makepyfile(test_spawns=SPAWNS)
    run = suite.runpytest_subprocess("--ci")
    assert run.ret == 0
    assert "left behind" not in run.stdout.str()
