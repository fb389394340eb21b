"""Signals and exit codes of the supervisor, with a small program in tritonserver's place.

The real one is killed and frozen in tests/e2e/test_supervised.py.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

LAUNCHER = """
import os, sys
from unified_embedding.serving import supervisor
command = [sys.executable, "-c", sys.argv[1]]
sys.exit(supervisor.run(command, dict(os.environ), float(sys.argv[2])))
"""
# It opens a port, as a server does when it is ready, and says so; SIGTERM ends it in order.
SERVES = """
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
listener = socket.create_server(("127.0.0.1", 0))
print("serving", os.getpid(), flush=True)
time.sleep(600)
"""
STUBBORN = SERVES.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
STARTS = 'import os, time; print("starting", os.getpid(), flush=True); time.sleep(600)'
GUARD_S = 60


@contextmanager
def launched(
    server: str, exit_timeout: float = 30, before: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    command = [*before, sys.executable, "-c", LAUNCHER, server, str(exit_timeout)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def server_of(process: subprocess.Popen[str]) -> int:
    """The process id that the program printed."""
    assert process.stdout is not None
    return int(process.stdout.readline().split()[1])


def let_it_be_seen() -> None:
    """A server counts as having served when the supervisor has seen its port."""
    time.sleep(3)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=GUARD_S)
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("server", [SERVES, STARTS])
def test_told_to_stop_it_ends_with_0_in_whatever_state(server: str, number: signal.Signals) -> None:
    with launched(server) as process:
        pid = server_of(process)
        process.send_signal(number)
        code, _ = ended(process)
    assert code == 0
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_do_what_they_do_to_any_program(number: signal.Signals) -> None:
    with launched(SERVES) as process:
        server_of(process)
        process.send_signal(number)
        assert ended(process) == (128 + number, "")


def test_a_signal_that_meets_a_dying_server_decides_the_exit_code() -> None:
    """It arrives after the server was killed, and before the supervisor has seen that."""
    with launched(SERVES) as process:
        server = server_of(process)
        process.send_signal(signal.SIGSTOP)
        os.kill(server, signal.SIGKILL)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGCONT)
        assert ended(process) == (128 + signal.SIGHUP, "")


def test_what_nohup_ignores_is_ignored() -> None:
    with launched(SERVES, before=["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]) as process:
        server_of(process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_an_ignored_sigchld_of_the_caller_does_not_hide_a_death() -> None:
    ignoring = ["import os, signal, sys", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"]
    program = "; ".join([*ignoring, "os.execv(sys.argv[1], sys.argv[1:])"])
    with launched(SERVES, before=[sys.executable, "-c", program]) as process:
        first = server_of(process)
        os.kill(first, signal.SIGKILL)
        assert server_of(process) != first
        process.terminate()
        assert ended(process)[0] == 0


def test_one_that_does_not_stop_is_ended_after_its_exit_timeout() -> None:
    with launched(STUBBORN, exit_timeout=1) as process:
        server_of(process)
        process.terminate()
        code, errors = ended(process)
    assert code == 0
    assert "stopped, but not cleanly: its work was not done after 1 s" in errors


@pytest.mark.parametrize("code", [1, 7])
def test_a_first_start_that_fails_is_not_repeated(code: int) -> None:
    with launched(f"print('no', 0, flush=True); raise SystemExit({code})") as process:
        assert ended(process) == (code, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_dead_server_is_started_again_and_given_up_after_five_deaths(
    number: signal.Signals,
) -> None:
    with launched(SERVES) as process:
        pids = []
        for _ in range(5):
            pids.append(server_of(process))
            os.kill(pids[-1], number)
        code, errors = ended(process)
    assert code == 128 + number
    assert len(set(pids)) == 5
    assert errors.count("starting the server again") == 4
    assert "5 times in 60 s are too many, giving up" in errors


def test_a_server_that_decides_to_end_is_started_again_once_it_has_served() -> None:
    with launched(SERVES.replace("sys.exit(0)", "sys.exit(3)")) as process:
        first = server_of(process)
        let_it_be_seen()
        os.kill(first, signal.SIGTERM)
        assert server_of(process) != first
        process.terminate()
        assert ended(process)[0] == 0


def test_a_stopped_server_is_replaced() -> None:
    with launched(SERVES) as process:
        first = server_of(process)
        os.kill(first, signal.SIGSTOP)
        assert server_of(process) != first
        assert not os.path.exists(f"/proc/{first}")
        process.terminate()
        assert ended(process)[0] == 0


def test_one_that_was_stopped_together_with_its_launcher_goes_on() -> None:
    with launched(SERVES) as process:
        first = server_of(process)
        # The server first: the supervisor may have seen it so.
        for pid in (first, process.pid):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        for pid in (process.pid, first):
            os.kill(pid, signal.SIGCONT)
        time.sleep(2)
        assert os.path.exists(f"/proc/{first}")
        process.terminate()
        assert ended(process) == (0, "")


def test_the_server_ends_with_a_killed_launcher() -> None:
    with launched(SERVES) as process:
        server_of(process)
        process.kill()
        # The pipe closes when the last process that holds it has ended.
        assert process.communicate(timeout=GUARD_S)[0] == ""
