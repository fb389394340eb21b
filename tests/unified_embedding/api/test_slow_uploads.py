"""Five hundred callers that send a byte now and then, against the program itself."""

import contextlib
import http.client
import json
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_service import HANG, url
from kserve_peer import Peer

from unified_embedding.serving.local_server import free_ports

SLOW = 500
ROUNDS = 20
# Of one connection: the server's buffers and its task, whatever the length that the caller states.
MOST_EACH = 100_000
HEAD = (
    b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 90000000\r\n\r\n"
)


@pytest.fixture
def program(peer: Peer) -> Iterator[tuple[int, int]]:
    """The API's process id and port."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "unified_embedding.cli", "api", "--port", str(port)]
    command += ["--server", peer.url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            assert b"http://127.0.0.1" in process.stderr.readline()
            for _ in range(int(10 * HANG)):
                assert process.poll() is None
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                threading.Event().wait(0.1)
            yield process.pid, port
        finally:
            process.terminate()
            process.wait(HANG)


def resident(pid: int) -> int:
    """Bytes in memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return 1024 * int(found[1])


def get(port: int, path: str) -> str:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=HANG)) as asked:
        asked.request("GET", path)
        return asked.getresponse().read().decode()


def embed(port: int) -> int:
    body = json.dumps({"input": url(b"a")})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=HANG)) as asked:
        asked.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = asked.getresponse()
        answer.read()
        return answer.status


def test_memory_stays_flat_and_others_are_answered(program: tuple[int, int]) -> None:
    pid, port = program
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * SLOW:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * SLOW), hard))
    assert [embed(port) for _ in range(20)] == 20 * [200]
    before = resident(pid)
    answers: list[int] = []
    done = threading.Event()

    def calling() -> None:
        while not done.is_set():
            answers.append(embed(port))

    good = threading.Thread(target=calling)
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), HANG))
            for _ in range(SLOW)
        ]
        for one in slow:
            one.sendall(HEAD + b"{")
        good.start()
        stack.callback(good.join, HANG)
        stack.callback(done.set)
        for _ in range(ROUNDS):
            for one in slow:
                one.sendall(b" ")
            wanted = len(answers) + 1
            while len(answers) < wanted and good.is_alive():
                threading.Event().wait(0.01)
        held = re.search(r"^unified_embedding_api_body_bytes (\S+)$", get(port, "/metrics"), re.M)
        assert held is not None
        # With the good caller's own.
        assert SLOW <= float(held[1]) <= SLOW * (ROUNDS + 1) + 1000
        during = resident(pid)
    assert set(answers) == {200}
    assert len(answers) >= ROUNDS
    print(f"{(during - before) / SLOW:,.0f} bytes of memory for each slow upload")
    assert during - before < SLOW * MOST_EACH
    # They went away: nothing is held, and what is asked is answered.
    assert embed(port) == 200
    for _ in range(int(10 * HANG)):
        if "\nunified_embedding_api_body_bytes 0.0\n" in get(port, "/metrics"):
            break
        threading.Event().wait(0.1)
    else:
        pytest.fail("bodies are still held")
