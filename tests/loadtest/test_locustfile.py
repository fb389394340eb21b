"""`locust -f loadtest/` as users run it, against a KServe v2 server whose behaviour is known."""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

import grpc
from kserve_peer import Peer, Request, serving, slowly

# Importing Locust here would patch the threads that the peer's gRPC server stands on.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="the extra `load` is not installed"
)


def test_users_wait_for_their_answers_side_by_side(peer: Peer, locust: Any) -> None:
    # Without gRPC's gevent support one waiting call would hold up all other users.
    together, slow = threading.Barrier(8), slowly(0.05)

    def respond(number: int, request: Request) -> None:
        if number <= 8:  # The first of each user.
            together.wait(120)
        slow(number, request)

    peer.respond = respond
    run = locust("--host", peer.url)
    assert run.exit_code == 0, run.said
    assert run.count("embedding+code x1", "num_requests") > 8
    assert run.count("embedding+code x1", "num_failures") == 0
    assert run.stats["embedding+code x1"]["min_response_time"] >= 50
    assert peer.most_at_once == 8
    assert {image for request in peer.requests for image in request.images} == {
        b"a.jpg",
        b"b.JPEG",
        b"c.png",
    }


def test_options_are_also_environment_variables(peer: Peer, locust: Any) -> None:
    peer.respond = slowly(0.02)
    run = locust("--host", peer.url, LOADTEST_OUTPUTS="code", LOADTEST_IMAGES_PER_REQUEST="3")
    assert run.exit_code == 0, run.said
    assert set(run.stats) == {"code x3"}
    assert {request.outputs for request in peer.requests} == {("code", "version")}
    assert {len(request.images) for request in peer.requests} == {3}
    # Three codes of two bytes.
    assert run.count("code x3", "total_content_length") == 6 * run.count("code x3", "num_requests")


def test_the_web_page_is_on_loopback_unless_told_otherwise(
    root: Path, tmp_path: Path, peer: Peer
) -> None:
    psutil = pytest.importorskip("psutil", reason="the extra `load` is not installed")
    for options, address in (([], "127.0.0.1"), (["--web-host", "0.0.0.0"], "0.0.0.0")):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        command = [sys.executable, "-m", "locust", "-f", f"{root}/loadtest/", "--host", peer.url]
        process = subprocess.Popen(
            [*command, "--web-port", str(port), *options],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        try:
            listening: list[str] = []
            began = time.monotonic()
            while not listening:
                assert process.poll() is None
                assert time.monotonic() - began < 300
                time.sleep(0.1)
                listening = [
                    one.laddr.ip
                    for one in psutil.Process(process.pid).net_connections("tcp")
                    if one.status == psutil.CONN_LISTEN and one.laddr.port == port
                ]
            assert listening == [address]
        finally:
            process.kill()
            process.wait()


def test_several_processes_have_a_connection_each(peer: Peer, locust: Any) -> None:
    peer.respond = slowly(0.02)
    run = locust("--host", peer.url, "--processes", "2")
    assert run.exit_code == 0, run.said
    # Locust's own figures may lack what its processes told last.
    assert run.report["completed"] == len(peer.requests) > 8
    assert run.report["failed"] == 0


def test_think_time_slows_the_users_down(peer: Peer, locust: Any) -> None:
    run = locust("--host", peer.url, "--think-time", "60", until=8)
    assert run.exit_code == 0, run.said
    assert len(peer.requests) == 8


def test_a_wrong_shape_is_a_failure(peer: Peer, locust: Any) -> None:
    def widen(response: Any) -> None:
        code = response.outputs[0]
        code.shape[1] *= 2
        response.raw_output_contents[0] *= 2

    peer.alter = widen
    # Without the JSON file Locust prints its table of errors.
    run = locust("--host", peer.url, "--think-time", "0.1", report=())
    assert run.exit_code == 1
    assert "answer of shape (1, 4), expected (1, 2)" in run.said
    assert "no request was completed" in run.said


def test_one_failure_among_good_answers_fails_the_run(peer: Peer, locust: Any) -> None:
    peer.respond = lambda number, request: (
        (grpc.StatusCode.UNAVAILABLE, "as told") if number == 5 else None
    )
    run = locust("--host", peer.url, "--think-time", "0.1")
    assert run.exit_code == 1
    # Not retried: the load test counts every call that failed.
    assert run.count("embedding+code x1", "num_failures") == 1


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "two"])
def test_a_stopped_server_fails_the_run(locust: Any, processes: list[str]) -> None:
    with serving(Peer()) as peer:
        pass
    run = locust("--host", peer.url, *processes)
    assert run.exit_code == 1
    assert "no request was completed" in run.said
    assert f"{peer.url} is unavailable" in run.said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "/nowhere"], "/nowhere holds no picture"),
        (["--outputs", "floats"], "--outputs floats is not a selection"),
        (["--images-per-request", "0"], "--images-per-request 0"),
        (["--images-per-request", "5"], "above the server's limit of 4"),
        (["--host", "http://127.0.0.1:8000"], "gRPC address"),
    ],
)
def test_unusable_options_are_refused(
    peer: Peer, locust: Any, arguments: list[str], message: str
) -> None:
    run = locust("--host", peer.url, *arguments)
    assert run.exit_code == 1
    assert message in run.said
    assert not peer.requests


def test_helpers_are_not_taken_for_locustfiles(root: Path) -> None:
    files = {path.name for path in (root / "loadtest").glob("*.py")}
    assert {name for name in files if not name.startswith("_")} == {"locustfile.py"}
