"""`make load` as a user ends it, against a KServe v2 server whose behaviour is known."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("psutil", reason="the extra `load` is not installed")

import psutil
from kserve_peer import Peer, slowly

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="the extra `load` is not installed"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["ctrl-c", "hang-up"])
def test_locust_ends_with_the_program(
    root: Path, tmp_path: Path, peer: Peer, number: signal.Signals
) -> None:
    peer.respond = slowly(0.05)
    command = [sys.executable, root / "bench/load.py", "--out", tmp_path / "out"]
    with (tmp_path / "said").open("wb") as said:
        program = subprocess.Popen(
            command,
            stdout=said,
            stderr=said,
            env={**os.environ, "HOST": peer.url, "DURATION": "600"},
            start_new_session=True,
        )
        while len(peer.requests) < 20:
            assert program.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        started = psutil.Process(program.pid).children(recursive=True)
        assert started
        # A terminal signals the program's own group only.
        os.killpg(program.pid, number)
        assert program.wait(600) != 0
    assert psutil.wait_procs(started, timeout=100)[1] == []
