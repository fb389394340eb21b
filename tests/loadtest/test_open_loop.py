"""The open-loop user, and the report, against a KServe v2 server whose behaviour is known."""

import importlib.util
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from kserve_peer import Peer, Request, slowly

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="the extra `load` is not installed"
)
NAME = "embedding+code x1"
OPEN = ("OpenLoop", "-u", "1")
STALL_S = 4.0


def standing_still_at(number: int, seconds: float) -> Callable[[int, Request], None]:
    """A server that answers nothing for `seconds` from its `number`th request on."""
    answering, stood = threading.Event(), threading.Event()

    def respond(count: int, request: Request) -> None:
        if count == number:
            threading.Timer(seconds, answering.set).start()
        if count >= number and not stood.is_set():
            assert answering.wait(60 * seconds)
            stood.set()

    return respond


def test_only_the_open_loop_shows_a_stall_in_its_p99(peer: Peer, locust: Any) -> None:
    def run(*arguments: str) -> Any:
        peer.requests.clear()
        peer.respond = standing_still_at(150, STALL_S)
        return locust("--host", peer.url, *arguments, until=400)

    closed = run("-u", "2")
    opened = run(*OPEN, "--rate", "40")
    assert closed.exit_code == opened.exit_code == 0, closed.said + opened.said
    # Both met the stall, but of the closed loop's requests two only.
    assert closed.report["latency_ms"]["max"] > 900 * STALL_S
    assert closed.report["latency_ms"]["p99"] < closed.report["latency_ms"]["max"] / 2
    assert opened.report["latency_ms"]["p99"] > 900 * STALL_S / 2
    assert closed.report["load"] == "closed loop"
    assert "hide stalls" in closed.report["meaning"]
    assert opened.report["load"] == "open loop"
    assert "a stall of the server shows in full" in opened.report["meaning"]


def test_arrivals_do_not_wait_for_answers_and_none_is_lost_at_the_end(
    peer: Peer, locust: Any
) -> None:
    peer.respond = slowly(0.7)
    run = locust(*OPEN, "--host", peer.url, "--rate", "20", until=40)
    assert run.exit_code == 0, run.said
    # A closed loop of one user would have one on its way, and three in all.
    assert peer.most_at_once > 4
    report = run.report
    assert report["offered"] == report["completed"] == len(peer.requests) > 10
    # Those still on their way when the time was up are the slow ones: they count too.
    assert run.count(NAME, "num_requests") == report["offered"]
    assert report["latency_ms"]["p50"] >= 700


def test_arrivals_beyond_the_cap_are_dropped_counted_and_fail_the_run(
    peer: Peer, locust: Any
) -> None:
    peer.respond = slowly(0.5)
    run = locust(*OPEN, "--host", peer.url, "--rate", "40", "--max-inflight", "2", until=8)
    assert run.exit_code == 1
    assert peer.most_at_once == 2
    report = run.report
    assert report["dropped"] > 10
    assert report["offered"] == report["completed"] + report["dropped"]
    assert report["completed"] == len(peer.requests)
    assert run.count(NAME, "num_failures") == report["dropped"]


def test_a_rate_profile_is_followed(peer: Peer, locust: Any) -> None:
    run = locust(*OPEN, "--host", peer.url, "-t", "20s", "--rate", "8@1,60@1,0@1", until=None)
    assert run.exit_code == 0, run.said
    first, second = (entry["offered"] for entry in run.report["timeline"][:2])
    assert first < second
    assert 30 < run.report["offered"] < 110


def test_processes_share_the_work_and_the_report_has_all_of_it(peer: Peer, locust: Any) -> None:
    peer.respond = slowly(1.0)
    two = ("-u", "2", "-r", "2", "--processes", "2")
    run = locust("OpenLoop", "--host", peer.url, *two, "--rate", "10", until=30)
    assert run.exit_code == 0, run.said
    # Locust's own figures may lack what its processes told last.
    assert run.report["completed"] == len(peer.requests) > 20


def test_the_warm_up_is_in_no_figure(peer: Peer, locust: Any) -> None:
    cold = slowly(1.5)
    peer.respond = lambda number, request: cold(number, request) if number <= 8 else None
    run = locust(
        "--host", peer.url, "--warm-up", "10", "-t", "14s", "--think-time", "0.05", until=None
    )
    assert run.exit_code == 0, run.said
    assert 0 < run.report["completed"] < len(peer.requests)
    assert run.report["latency_ms"]["max"] < 1500
    assert run.stats[NAME]["max_response_time"] < 1500
    assert run.report["seconds"] < 10


@pytest.mark.parametrize(("limit", "exit_code"), [("10", 1), ("60000", 0)])
def test_the_slo_decides_the_exit_code(peer: Peer, locust: Any, limit: str, exit_code: int) -> None:
    peer.respond = slowly(0.05)
    run = locust("--host", peer.url, SLO_P99_MS=limit)
    assert run.exit_code == exit_code, run.said
    assert run.report["slo"]["held"] is (exit_code == 0)
    assert ("the SLO does not hold: 0.00 %" in run.said) is (exit_code == 1)


def test_the_report_says_what_the_server_did(peer: Peer, locust: Any, tmp_path: Path) -> None:
    peer.respond = slowly(0.02)
    run = locust("--host", peer.url, "--think-time", "0.1", "--seed", "7")
    server = run.report["server"]
    # The peer's statistics: 5 ms a request in all, 2 ms of it in each model's queue.
    assert server["stages_ms"]["decode: queue"] == pytest.approx(2)
    # It runs in the process of this test.
    assert server["cpu_ms_per_image"] > 0
    assert server["memory_mb"]["peak"] > 10
    assert run.report["provenance"]["seed"] == 7
    assert run.report["provenance"]["server"]["engine"] == "test-fp32-0123456789ab"
    assert run.report["settings"]["user"] == "ClosedLoop"
    page = (tmp_path / "report" / "report.html").read_text()
    top = page.split("<h2>")[0]
    for told in (peer.url, "test-fp32-0123456789ab", "8 users", "requests were answered"):
        assert told in top
    for svg in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    assert "Closed loop: each of N users" in page
    lines = (tmp_path / "report" / "timeline.csv").read_text().splitlines()
    assert lines[0] == "second,offered,dropped,completed,failed,p50_ms,max_ms"
    assert sum(int(line.split(",")[3]) for line in lines[1:]) == run.report["completed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ClosedLoop", "OpenLoop"], "name ClosedLoop or OpenLoop, not both"),
        (["OpenLoop", "--rate", "fast"], "--rate: rate 'fast' is neither"),
        (["OpenLoop", "--max-inflight", "0"], "--max-inflight 0 is below 1"),
        (["--warm-up", "-1"], "--warm-up -1.0 is below 0"),
    ],
)
def test_unusable_options_are_refused(
    peer: Peer, locust: Any, arguments: list[str], message: str
) -> None:
    run = locust("--host", peer.url, *arguments)
    assert run.exit_code == 1
    assert message in run.said
    assert not peer.requests
