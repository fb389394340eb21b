"""Start and stop of the real tritonserver, in order and by force."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from drills import (
    NOTICED_S,
    SERVED_S,
    Callers,
    alive,
    files_of,
    log_of,
    ready,
    serves,
    stub_of,
    until,
)

from unified_embedding.serving import model_config, processes
from unified_embedding.serving.local_server import LocalServer, free_ports, start

pytestmark = pytest.mark.e2e
EXIT_TIMEOUT_S = 30


@pytest.fixture
def own(repository: Path, tmp_path: Path) -> Iterator[LocalServer]:
    """A server that a test may end."""
    started = start(repository, tmp_path / "log")
    yield started
    started.stop()


@contextlib.contextmanager
def launching(repository: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher whose server is not ready yet."""
    ports = zip(("http", "grpc", "metrics"), free_ports(3), strict=True)
    command = [sys.executable, "-m", "unified_embedding.serving.tritonserver"]
    command += [f"--model-repository={repository}", *(f"--{n}-port={p}" for n, p in ports)]
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, stderr=stream, stdout=stream) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def python_instances(repository: Path) -> int:
    """Processes that the Python backend starts: one for each instance."""
    configs = [model_config.read(path.parent) for path in repository.glob("*/config.pbtxt")]
    python = [config for config in configs if config.backend == "python"]
    return sum(group.count for config in python for group in config.instance_group)


def family_of(server: LocalServer) -> list[int]:
    """tritonserver and its models' processes."""
    return [server.server_pid, *processes.stubs(server.server_pid)]


def assert_nothing_is_left(family: list[int]) -> None:
    assert [pid for pid in family if alive(pid)] == []
    assert files_of(family[0]) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_leaves_no_process_and_no_shared_memory(
    own: LocalServer, repository: Path, number: signal.Signals
) -> None:
    family = family_of(own)
    assert len(family) == 1 + python_instances(repository)
    assert len(files_of(family[0])) >= len(family)
    own.process.send_signal(number)
    assert own.process.wait(10 * EXIT_TIMEOUT_S) == 0
    assert "not cleanly" not in log_of(own)
    assert_nothing_is_left(family)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, 129)]
)
def test_stopped_under_load(
    own: LocalServer, number: signal.Signals, code: int, image: list[bytes], right: np.ndarray
) -> None:
    family = family_of(own)
    with Callers(own.grpc_url, image, right, count=16):
        began = time.monotonic()
        own.process.send_signal(number)
        assert own.process.wait(10 * EXIT_TIMEOUT_S) == code
        print(f"\n  {number.name}: ended after {time.monotonic() - began:.1f} s")
    assert_nothing_is_left(family)


@pytest.mark.parametrize("moment", ["no model yet", "models load"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, 129)]
)
def test_stopped_while_it_starts(
    repository: Path, tmp_path: Path, moment: str, number: signal.Signals, code: int
) -> None:
    with launching(repository, tmp_path / "log") as launcher:

        def server() -> int | None:
            found = processes.children(launcher.pid)
            return next((pid for pid in found if processes.name(pid) == processes.SERVER), None)

        until(server, SERVED_S, "no tritonserver")
        pid = server()
        assert pid is not None
        if moment == "models load":
            until(lambda: processes.stubs(pid), SERVED_S, "no model")
        family = [pid, *processes.stubs(pid)]
        launcher.send_signal(number)
        assert launcher.wait(10 * EXIT_TIMEOUT_S) == code
    assert_nothing_is_left(family)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, 129)]
)
def test_stopped_while_it_starts_again(own: LocalServer, number: signal.Signals, code: int) -> None:
    first = family_of(own)
    os.kill(first[1], signal.SIGKILL)
    until(lambda: not ready(own), NOTICED_S, "still ready")
    own.process.send_signal(number)
    assert own.process.wait(10 * EXIT_TIMEOUT_S) == code
    assert_nothing_is_left(first)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_frozen_model_does_not_hold_up_the_stop(
    own: LocalServer, number: signal.Signals
) -> None:
    family = family_of(own)
    os.kill(stub_of(own, "embedder"), number)
    began = time.monotonic()
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(10 * EXIT_TIMEOUT_S) == 0
    print(f"\n  ended after {time.monotonic() - began:.1f} s")
    assert_nothing_is_left(family)


def test_a_killed_launcher_takes_everything_along_and_the_next_start_cleans(
    own: LocalServer, repository: Path, tmp_path: Path, image: list[bytes], right: np.ndarray
) -> None:
    neighbour = start(repository, tmp_path / "neighbour")
    try:
        family, frozen = family_of(own), stub_of(own, "binarizer")
        os.kill(frozen, signal.SIGSTOP)
        own.process.kill()
        others = [pid for pid in family if pid != frozen]
        until(lambda: not any(map(alive, others)), NOTICED_S, "processes are left")
        # A stopped process cannot end by itself, and its server's memory is still there, unless
        # somebody else's server was started at this moment.
        third = start(repository, tmp_path / "third")
        try:
            assert_nothing_is_left(family)
            for living in (neighbour, third):
                assert serves(living, image, right)
                assert len(files_of(living.server_pid)) > len(family) - 1
            # The neighbour is untouched: it can also break and come back.
            before = neighbour.server_pid
            os.kill(stub_of(neighbour, "preprocess"), signal.SIGKILL)
            until(lambda: not ready(neighbour), NOTICED_S, "still ready")
            until(lambda: ready(neighbour), SERVED_S, "not ready again")
            assert files_of(before) == set()
            assert serves(third, image, right)
        finally:
            assert third.stop() == 0
    finally:
        assert neighbour.stop() == 0


def test_a_repository_without_an_engine_says_make_engine(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model_repository"
    (folder / "unified_embedding").mkdir(parents=True)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "unified_embedding.serving.tritonserver",
            f"--model-repository={folder}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "run `make engine` first" in run.stderr


def test_a_start_that_fails_ends_at_once_with_tritons_code(
    repository: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "unified_embedding.serving.tritonserver"]
    with log.open("wb") as stream:
        run = subprocess.run(
            [*command, f"--model-repository={repository}", "--no-such-flag"],
            stdout=stream,
            stderr=stream,
            check=False,
        )
    assert run.returncode == 1
    assert "starting the server again" not in log.read_text()


def test_somebody_elses_repository_is_served_by_triton_itself(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "theirs" / "1"
    model.mkdir(parents=True)
    (model / "model.py").write_text(
        "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
    )
    (model.parent / "config.pbtxt").write_text('backend: "python"\nmax_batch_size: 1\n')
    theirs = start(tmp_path / "repository", tmp_path / "log", ["--disable-auto-complete-config"])
    pid = theirs.process.pid
    try:
        assert processes.name(pid) == processes.SERVER
        assert post(f"{theirs.http_url}/v2/repository/index", {}) == 200
    finally:
        assert theirs.stop() == 0


OPERATORS = [
    ("POST", "v2/repository/index"),
    ("POST", "v2/repository/models/binarizer/unload"),
    ("POST", "v2/repository/models/binarizer/load"),
    ("POST", "v2/systemsharedmemory/region/x/register"),
    ("GET", "v2/systemsharedmemory/status"),
    ("GET", "v2/trace/setting"),
    ("POST", "v2/models/binarizer/trace/setting"),
    ("GET", "v2/logging"),
    ("POST", "v2/logging"),
]
EVERYBODYS = [
    "v2",
    "v2/health/ready",
    "v2/health/live",
    "v2/models/unified_embedding",
    "v2/models/unified_embedding/ready",
    "v2/models/embedder/config",
    "v2/models/stats",
]


def post(url: str, body: dict, method: str = "POST", **headers: str) -> int:
    data = json.dumps(body).encode() if method == "POST" else None
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_what_only_an_operator_may_do_is_refused(server) -> None:
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    for method, path in OPERATORS:
        assert post(f"{server.http_url}/{path}", {}, method) == 403, path
    for path in EVERYBODYS:
        assert post(f"{server.http_url}/{path}", {}, "GET") == 200, path
    with InferenceServerClient(server.grpc_url) as client:
        calls = (
            client.get_model_repository_index,
            lambda: client.load_model("binarizer"),
            lambda: client.unload_model("binarizer"),
            client.get_system_shared_memory_status,
            lambda: client.register_system_shared_memory("x", "/x", 8),
            client.unregister_system_shared_memory,
            client.get_trace_settings,
            lambda: client.update_trace_settings(settings={"trace_rate": "1"}),
            client.get_log_settings,
            lambda: client.update_log_settings({"log_verbose_level": 9}),
        )
        for call in calls:
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
        assert client.get_inference_statistics().model_stats


def test_an_operator_with_the_key_may(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image: list[bytes],
    right: np.ndarray,
) -> None:
    key = "chosen-by-the-operator"
    monkeypatch.setenv("UNIFIED_EMBEDDING_OPERATOR_KEY", key)
    flags = ["--model-control-mode=explicit", "--load-model=unified_embedding"]
    server = start(repository, tmp_path / "log", flags)
    try:
        before = server.server_pid
        models = f"{server.http_url}/v2/repository/models"
        assert post(f"{models}/unified_embedding/unload", {}) == 403
        assert post(f"{models}/unified_embedding/unload", {}, **{"operator-key": "wrong"}) == 403
        for _ in range(2):
            for what in ("unified_embedding", "binarizer", "preprocess", "embedder"):
                # A model that is unloaded on purpose is not a dead one.
                assert post(f"{models}/{what}/unload", {}, **{"operator-key": key}) == 200
            until(lambda: not processes.stubs(before), NOTICED_S, "models are still there")
            time.sleep(2)
            assert post(f"{models}/unified_embedding/load", {}, **{"operator-key": key}) == 200
            until(lambda: serves(server, image, right), SERVED_S, "not served again")
        assert server.server_pid == before
    finally:
        assert server.stop() == 0
