"""Two servers behind one gateway: balanced, replaced one by one, killed and frozen under load."""

import collections
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from drills import PATIENCE, SERVED_S, end, stub_of, until

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

pytest.importorskip("onnx", reason="the extra `build` is not installed")
pytest.importorskip("msgspec", reason="the extra `api` is not installed")

import grpc
import tiny_embedder as tiny
from gateways import KEYS, MODEL, Rig, bearer, gateway, pictures, point, stub
from triton_calls import settled

from unified_embedding.client import TLS, EmbedderClient
from unified_embedding.client import bearer as token
from unified_embedding.gateway import envoy, folder
from unified_embedding.serving.local_server import LocalServer, child, free_ports, start

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("RUN_SLOW"), reason="takes minutes; RUN_SLOW=1 runs it"),
]

KEY = KEYS[0][1]
CALLERS = 4
# As envoy.yaml says: so many failures in a row, and a server gets no more calls.
IN_A_ROW = 3


@dataclass
class Site:
    """A gateway and the servers behind it."""

    rig: Rig
    repository: Path
    here: Path
    servers: list[LocalServer] = field(default_factory=list)

    def start(self) -> LocalServer:
        """A further server, of which the gateway is not told yet."""
        log = self.here / f"triton{len(list(self.here.glob('triton*')))}.log"
        return start(self.repository, log, ["--log-verbose=1"])

    def point(self, *servers: LocalServer) -> None:
        self.servers = list(servers)
        point(self.rig.folder, servers)

    def healthy(self) -> int:
        return self.rig.counter("membership_healthy")

    def seen_ill(self) -> int:
        """How often the gateway has found a server ill, by its health or by its answers."""
        figures = ("health_check.failure", "outlier_detection.ejections_enforced_total")
        return sum(self.rig.counter(figure) for figure in figures)

    def until_healthy(self, count: int) -> None:
        until(lambda: self.healthy() == count, SERVED_S, f"there are not {count} healthy servers")


@pytest.fixture(scope="module")
def place(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    here = tmp_path_factory.mktemp("drills")
    with contextlib.ExitStack() as stack:
        place = Site(stack.enter_context(gateway(here / "folder", [])), repository, here)
        stack.callback(lambda: [end(server) for server in place.servers])
        yield place


@pytest.fixture
def site(place: Site) -> Site:
    """Two servers that are well, whatever the drill before has left."""
    place.point(*place.servers, *(place.start() for _ in range(2 - len(place.servers))))
    place.until_healthy(2)
    return place


class Callers:
    """Plain callers on channels of their own, who ask one call after another and repeat none."""

    def __init__(self, site: Site, image: bytes) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.wrong = 0
        self._site, self._image = site, image
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE * SERVED_S)
        assert not [thread for thread in self._threads if thread.is_alive()]
        print(f"  calls: {dict(self.outcomes)}")
        assert self.wrong == 0

    def go_on(self, calls: int = 50) -> None:
        """Wait until so many further calls were answered."""
        goal = self.outcomes["OK"] + calls
        until(lambda: self.outcomes["OK"] >= goal, SERVED_S, "nobody is answered")

    @property
    def failed(self) -> int:
        return sum(self.outcomes.values()) - self.outcomes["OK"]

    def _ask(self) -> None:
        request, right = pictures([self._image]), None
        with self._site.rig.channel() as channel:
            while not self._stop.is_set():
                try:
                    answer = stub(channel).ModelInfer(request, metadata=bearer(KEY), timeout=60)
                    outcome, code = "OK", answer.raw_output_contents[0]
                    right = right or code
                except grpc.RpcError as error:
                    outcome, code = error.code().name, right
                with self._lock:
                    self.outcomes[outcome] += 1
                    self.wrong += code != right


def answered_by(server: LocalServer) -> int:
    """Calls that a server had, by its own log."""
    told = re.findall(rf"request id: ours, model: {MODEL},", server.log.read_text(errors="replace"))
    return len(told)


def test_the_calls_of_one_channel_are_shared_out(site: Site, image: bytes) -> None:
    before = [answered_by(server) for server in site.servers]
    with site.rig.channel() as channel:
        for _ in range(400):
            stub(channel).ModelInfer(pictures([image]), metadata=bearer(KEY), timeout=60)
    after = [settled(lambda one=server: answered_by(one)) for server in site.servers]
    shares = [late - early for early, late in zip(before, after, strict=True)]
    print(f"  calls of each server: {shares}")
    assert sum(shares) == 400
    assert all(160 <= share <= 240 for share in shares)


def test_a_call_reaches_one_version_alone(site: Site, image: bytes) -> None:
    """Blue and green behind one gateway: by the header, else the default; never by chance."""
    point(site.rig.folder, site.servers, ["blue", "green"])
    with site.rig.channel() as channel:

        def ask(version: str | None) -> str:
            named = [] if version is None else [("embedding-version", version)]
            metadata = [*bearer(KEY), *named]
            try:
                stub(channel).ModelInfer(pictures([image]), metadata=metadata, timeout=60)
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"
            return "OK"

        until(lambda: ask("green") == "OK", SERVED_S, "the versions are not known")
        before = [settled(lambda one=server: answered_by(one)) for server in site.servers]
        assert {ask(None) for _ in range(30)} == {"OK"}
        assert {ask("blue") for _ in range(10)} == {"OK"}
        assert {ask("green") for _ in range(20)} == {"OK"}
        (nobody,) = {ask("red") for _ in range(5)}
        assert nobody.startswith("UNAVAILABLE: no server is well here that serves the version")
        after = [settled(lambda one=server: answered_by(one)) for server in site.servers]
        assert np.subtract(after, before).tolist() == [40, 20]
        # A server that is ill has no stand-in of another version.
        point(site.rig.folder, site.servers[1:], ["green"])
        until(lambda: ask("blue").startswith("UNAVAILABLE"), SERVED_S, "blue is still there")


def test_servers_are_replaced_one_by_one_without_a_failed_call(site: Site, image: bytes) -> None:
    """The rolling replacement: a new server in, an old one off the list, and then stopped."""
    with Callers(site, image) as callers:
        for _ in range(2):
            old, other = site.servers
            new = site.start()
            site.point(old, other, new)
            site.until_healthy(3)
            site.point(other, new)
            site.until_healthy(2)
            # In Kubernetes that is what preStop waits for.
            until(lambda one=old: idle(one), SERVED_S, "a server off the list still gets calls")
            assert old.stop() == 0
            callers.go_on()
    assert callers.failed == 0
    assert callers.outcomes["OK"] > 100


def test_one_of_two_servers_stops_under_load(site: Site, image: bytes) -> None:
    with Callers(site, image) as callers:
        leaving, staying = site.servers
        site.point(staying)
        site.until_healthy(1)
        until(lambda: idle(leaving), SERVED_S, "a server off the list still gets calls")
        assert leaving.stop() == 0
        callers.go_on()
    assert callers.failed == 0


def test_a_gateway_that_ends_answers_what_it_has_begun(
    root: Path, site: Site, image: bytes, tmp_path: Path
) -> None:
    port, admin_port = free_ports(2)
    folder.certify(tmp_path)
    folder.write_keys(tmp_path, KEYS)
    point(tmp_path, site.servers)
    command = [sys.executable, "-m", "unified_embedding.cli", "gateway", "run", "--drain", "120"]
    command += ["--folder", str(tmp_path), "--port", str(port), "--admin-port", str(admin_port)]
    log = (tmp_path / "log").open("wb")
    with log, child(command, cwd=root, stdout=log, stderr=log) as process:
        rig = Rig(tmp_path, port, envoy.Gateway(process, admin_port), tmp_path / "log")
        until(lambda: healthy(rig), SERVED_S, "no healthy server")
        with rig.channel() as channel:
            request, key = pictures([image] * 8), bearer(KEY)
            begun = [
                stub(channel).ModelInfer.future(request, metadata=key, timeout=120)
                for _ in range(100)
            ]
            assert begun[0].result().outputs
            assert rig.gateway.counter("http.gateway.downstream_rq_active") > 10
            process.terminate()
            assert all(call.result().outputs for call in begun)
        assert process.wait(PATIENCE * SERVED_S) == 128 + signal.SIGTERM


def test_the_demo_is_one_command(root: Path, repository: Path, tmp_path: Path) -> None:
    """What `make gateway` runs: its curl line gives a vector, its link the search page."""
    port, admin_port = free_ports(2)
    command = [sys.executable, "-m", "unified_embedding.cli", "gateway", "run", "--demo"]
    command += ["--folder", str(tmp_path), "--repository", str(repository)]
    command += ["--port", str(port), "--admin-port", str(admin_port)]
    told = tmp_path / "told"
    with told.open("wb") as out, child(command, cwd=root, stdout=out, stderr=out) as process:
        until(lambda: "\ncurl " in told.read_text() or process.poll(), SERVED_S, "nothing is told")
        text = told.read_text()
        (line,) = re.findall(r"^curl .*$", text, re.MULTILINE)
        answer = subprocess.run(
            [*shlex.split(line), "--silent"], cwd=root, capture_output=True, text=True, check=True
        )
        assert len(json.loads(answer.stdout)["data"][0]["embedding"]) == tiny.DIM
        (link,) = re.findall(r"^page +(https:\S+)$", text, re.MULTILINE)
        jar, trust = str(tmp_path / "jar"), str(tmp_path / folder.CERTIFICATE)
        visit = ["curl", "--silent", "--fail", "--location", "--cookie-jar", jar, "--cacert", trust]
        page = subprocess.run([*visit, link], capture_output=True, text=True, check=True)
        assert "/app.js" in page.stdout
        process.terminate()
        assert process.wait(PATIENCE * SERVED_S) == 128 + signal.SIGTERM


@pytest.mark.parametrize("model", ["preprocess", "embedder", "binarizer"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_server_with_a_broken_model_gets_no_calls_until_it_embeds_again(
    site: Site, image: bytes, model: str, how: signal.Signals
) -> None:
    broken, well = site.servers
    tls = TLS(site.rig.folder / folder.CERTIFICATE)
    with (
        EmbedderClient(f"localhost:{site.rig.port}", tls=tls, metadata=token(KEY)) as client,
        Callers(site, image) as callers,
    ):
        truth = client.embed([image], outputs=("code",)).code
        first, before, ill = broken.server_pid, answered_by(well), site.seen_ill()
        os.kill(stub_of(broken, model), how)
        while not running_again(broken, first):
            # Our own client repeats what failed: its caller sees nothing of it.
            assert np.array_equal(client.embed([image], outputs=("code",)).code, truth)
        assert answered_by(well) > before
        assert site.seen_ill() > ill
        site.until_healthy(2)
        served = answered_by(broken)
        until(lambda: answered_by(broken) > served, SERVED_S, "it gets no calls again")
        failed = callers.failed
        callers.go_on(100)
        assert callers.failed == failed
    # What was in flight, and what it takes to see that a server is ill.
    assert callers.failed <= CALLERS + IN_A_ROW


def healthy(rig: Rig) -> bool:
    with contextlib.suppress(OSError):
        return rig.http("GET", "/healthz")[0] == 200
    return False


def idle(server: LocalServer) -> bool:
    """Whether nothing reached a server for a second."""
    before = answered_by(server)
    time.sleep(1)
    return answered_by(server) == before


def running_again(server: LocalServer, first: int) -> bool:
    from unified_embedding.errors import ServerUnavailable

    with contextlib.suppress(ServerUnavailable):
        return server.server_pid != first
    return False
