import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unified_embedding.serving import processes
from unified_embedding.serving.local_server import child, free_ports


def test_free_ports_are_free_for_a_second_start_too() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    # Linux gives those from the first one on to connections and to whoever asks for any port.
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert first <= 20_000 or max(ports) < first
    assert min(ports) >= 1024


STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(below.pid, flush=True)
below.wait()
"""
PROGRAM = """
import subprocess, sys
from unified_embedding.serving.local_server import child, end_in_order
end_in_order()
with child([sys.executable, "-c", sys.argv[1]], within_s=0.2) as other:
    print(other.pid, flush=True)
    other.wait()
"""


def test_a_program_that_ignores_sigterm_is_killed_with_all_it_started() -> None:
    with child([sys.executable, "-c", STUBBORN], within_s=0.2, stdout=subprocess.PIPE) as stubborn:
        below = int(stubborn.stdout.readline())
    assert stubborn.returncode == -signal.SIGKILL
    until_gone(below)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_what_a_program_started(root: Path, number: signal.Signals) -> None:
    """A closed terminal sends SIGHUP, and often twice."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, STUBBORN], stdout=subprocess.PIPE, cwd=root, text=True
    )
    with program:
        started = [int(program.stdout.readline()) for _ in range(2)]
        program.send_signal(number)
        if number != signal.SIGINT:
            program.send_signal(number)
        assert program.wait(600) == (-number if number == signal.SIGINT else 128 + number)
    for pid in started:
        until_gone(pid)


def test_sighup_stays_ignored_under_nohup(root: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from unified_embedding.serving.local_server import end_in_order; end_in_order()\n"
        "signal.raise_signal(signal.SIGHUP); print('goes on')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "goes on\n")


def until_gone(pid: int) -> None:
    """Wait until a process has ended: the orphan of one that was killed is not ours to wait for."""
    end = time.monotonic() + 100
    while processes.state(pid) not in ("", "Z"):
        assert time.monotonic() < end, f"{pid} goes on"
        time.sleep(0.02)
