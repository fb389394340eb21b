"""A running server and HTTP API, scraped by Prometheus and traced.

Every figure in rules, dashboard and autoscaler exists, what the processes of a model count is added
up, and a trace leads from the caller into `preprocess`.
"""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("msgspec", reason="the extra `api` is not installed")
pytest.importorskip("opentelemetry.sdk", reason="the extra `trace` is not installed")

from drills import SERVED_S, stub_of, until
from gateways import KEYS, gateway
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_current_span
from otlp_collector import Collector, Span, collecting
from prometheus_programs import program

from unified_embedding.api.wire import MODEL
from unified_embedding.client import TLS, AsyncEmbedderClient, EmbedderClient
from unified_embedding.client import bearer as token
from unified_embedding.errors import Overloaded, RequestRejected
from unified_embedding.gateway import folder
from unified_embedding.serving.local_server import LocalServer, child, free_ports, start

pytestmark = pytest.mark.e2e
# What Prometheus and the exporters of spans pass on every few seconds, ten times over.
TOLD_S = 120.0
WORDS = {"and", "or", "unless", "bool", "vector", "by", "on", "group_left", "offset"}


@dataclass(frozen=True)
class Observed:
    """A server and an API whose traces go to a collector."""

    server: LocalServer
    api: str
    collector: Collector

    def figures(self) -> dict[str, float]:
        """The server's metrics, by name and labels as it prints them."""
        with urllib.request.urlopen(self.server.metrics_url, timeout=SERVED_S) as page:
            lines = page.read().decode().splitlines()
        split = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in split}

    def ask(self, path: str, body: Any = None, **headers: str) -> int:
        """The status of an HTTP request."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", **headers}
        request = urllib.request.Request(f"{self.api}{path}", data, sent)
        try:
            with urllib.request.urlopen(request, timeout=SERVED_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def observed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    here = tmp_path_factory.mktemp("observed")
    (port,) = free_ports(1)
    with pytest.MonkeyPatch.context() as environment, collecting() as collector:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        server = start(repository, here / "triton.log")
        try:
            api = [sys.executable, "-m", "unified_embedding.cli", "api"]
            api += ["--server", server.grpc_url, "--port", str(port)]
            with (here / "api.log").open("wb") as log, child(api, stdout=log, stderr=log):
                found = Observed(server, f"http://127.0.0.1:{port}", collector)
                until(lambda: _answers(found), SERVED_S, "no API")
                yield found
        finally:
            assert server.stop() == 0
        assert "not cleanly" not in (here / "triton.log").read_text(errors="replace")


def _answers(observed: Observed) -> bool:
    try:
        return observed.ask("/v1/health/ready") == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def client(observed: Observed) -> Iterator[EmbedderClient]:
    with EmbedderClient(observed.server.grpc_url, timeout=SERVED_S) as one:
        yield one


def told(problem: Callable[[], Any]) -> None:
    """Wait until there is none any more."""
    end = time.monotonic() + TOLD_S
    while found := problem():
        assert time.monotonic() < end, found
        time.sleep(0.2)


def pictures(image: bytes) -> list[dict[str, str]]:
    return [{"image": f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"}]


def total(figures: dict[str, float], name: str, *labels: str) -> float:
    found = [
        value
        for key, value in figures.items()
        if key.partition("{")[0] == name and all(label in key for label in labels)
    ]
    assert found, name
    return sum(found)


def test_the_processes_of_a_model_count_together(
    observed: Observed, client: EmbedderClient, image: bytes
) -> None:
    """Two `preprocess` processes share the work; nothing is lost, and nothing counted twice."""
    names = {
        "decoded": ("embedder_decode_duration_seconds_count", 'model="preprocess"'),
        "bad": ("embedder_refused_total", 'model="preprocess"', 'reason="bad_input"'),
        "late": ("embedder_refused_total", 'model="preprocess"', 'reason="late"'),
        "faults": ("embedder_refused_total", 'reason="internal"'),
        "batches": ("embedder_engine_duration_seconds_count", 'model="embedder"'),
        "pictures": ("nv_inference_count", 'model="unified_embedding"'),
        "run": ("nv_inference_exec_count", 'model="embedder"'),
        "dead": ("nv_inference_request_failure", 'reason="BACKEND"'),
    }

    def now() -> dict[str, float]:
        figures = observed.figures()
        return {key: total(figures, *name) for key, name in names.items()}

    def still(settled: dict[str, float], found: dict[str, float]) -> Any:
        """What differs from `settled`, and from what Triton counted itself of the batches."""
        right = {**settled, "batches": found["run"]}
        return {name: found[name] for name in right if found[name] != right[name]}

    client.embed([image])
    # So far every picture was good.
    told(lambda: still({"decoded": (found := now())["pictures"]}, found))
    before = now()

    def call(number: int) -> None:
        if number % 10 == 3:
            with pytest.raises(RequestRejected):
                client.embed([b"no picture"])
        elif number % 10 == 7:
            with pytest.raises(Overloaded):
                late.embed([image])
        else:
            client.embed([image, image])

    # A clock that is an hour behind: all its requests are late.
    with (
        EmbedderClient(observed.server.grpc_url, timeout=SERVED_S) as late,
        pytest.MonkeyPatch.context() as clock,
        ThreadPoolExecutor(8) as pool,
    ):
        late.info()
        clock.setattr(late, "_request", _in_the_past(late._request))
        list(pool.map(call, range(200)))

    wanted = {"decoded": 320, "pictures": 320, "bad": 20, "late": 20, "faults": 0, "dead": 0}

    def counted() -> dict[str, float]:
        after = now()
        return {key: after[key] - before[key] for key in names}

    told(lambda: still(wanted, counted()))
    (info,) = [key for key in observed.figures() if key.startswith("embedder_info")]
    server = client.info()
    for label in (f'version="{server.version}"', f'engine="{server.engine}"', 'model="embedder"'):
        assert label in info


def _in_the_past(request: Any) -> Any:
    def made(*arguments: Any) -> Any:
        sent = request(*arguments)
        sent.parameters["deadline"].string_param = f"{time.time() - 3600:.3f}"
        return sent

    return made


def names_in(query: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    query = re.sub(r'"(?:\\.|[^"\\])*"', "", query)
    query = re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]", "", query)
    query = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^()]*\)", "", query)
    words = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", query)
    # What is left besides: a duration behind `offset` begins with a digit.
    return set(words) - WORDS


def test_names_are_found_in_promql() -> None:
    query = (
        'sum by (job, le) (rate(a_total{x="b_total{"}[5m])) / on (job) group_left (v) c:d:rate5m '
        "> bool 2e3 and min_over_time(e[1m:5s] offset 10m) or absent(f) unless vector(1) * "
        "scalar(g)"
    )
    assert names_in(query) == {"a_total", "c:d:rate5m", "e", "f", "g"}


def queries(root: Path) -> dict[str, list[str]]:
    """Every PromQL expression of deploy/, by the file that has it."""
    rules = yaml.safe_load((root / "deploy/monitoring/rules.yaml").read_text())
    board = json.loads((root / "deploy/monitoring/dashboard.json").read_text())
    found = {
        "rules.yaml": [rule["expr"] for group in rules["groups"] for rule in group["rules"]],
        "dashboard.json": [
            target["expr"] for panel in board["panels"] for target in panel.get("targets", [])
        ],
    }
    # Helm's templates are no YAML yet: a query's line, with anything for what will be filled in.
    for file in sorted((root / "deploy").rglob("*.y*ml")):
        lines = re.findall(r"^\s*query: (.+)$", file.read_text(), re.MULTILINE)
        filled = [re.sub(r"\{\{.*?\}\}", "", line).replace(",}", "}") for line in lines]
        if filled and "prometheus" in file.read_text():
            found[file.name] = filled
    return found


@pytest.fixture(scope="module")
def prometheus(
    root: Path, observed: Observed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a Prometheus with the rules of deploy/, which scrapes the two."""
    here = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((root / "deploy/monitoring/prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(root / "deploy/monitoring/rules.yaml")]
    targets = {
        "unified-embedding": urllib.parse.urlsplit(observed.server.metrics_url).netloc,
        "unified-embedding-api": urllib.parse.urlsplit(observed.api).netloc,
    }
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
    assert not targets
    (here / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [
        program("prometheus"), f"--config.file={here / 'prometheus.yaml'}",
        f"--storage.tsdb.path={here / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (here / "log").open("wb") as log, child(command, stdout=log, stderr=log):
        yield f"http://127.0.0.1:{port}"


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """The series that an expression has now; none while Prometheus starts."""
    address = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(address, timeout=SERVED_S) as answer:
            return list(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise AssertionError(f"{expression}: {error.read().decode()}") from None
        return []
    except OSError:
        return []


def test_every_figure_that_is_watched_exists(
    root: Path, observed: Observed, client: EmbedderClient, image: bytes, prometheus: str
) -> None:
    told(lambda: not query(prometheus, "embedder_info"))
    client.embed([image])
    with pytest.raises(RequestRejected):
        client.embed([b"no picture"])
    assert observed.ask("/v1/embeddings", {"input": pictures(image), "model": MODEL}) == 200
    assert observed.ask("/v1/embeddings", {"input": "x", "model": MODEL}) == 400
    watched = queries(root)
    assert {"rules.yaml", "dashboard.json", "scaledobject.yaml"} <= set(watched)
    names = {name for found in watched.values() for one in found for name in names_in(one)}
    assert {"embedder_info", "up", "nv_inference_count", "embedder:pending:sum"} <= names

    def missing() -> set[str]:
        return {name for name in names if not query(prometheus, f'{{__name__="{name}"}}')}

    told(missing)
    # Where two scrapes are needed, they have been by now; what divides by no calls has no number.
    filled = {
        one: one.replace("$job", ".*").replace("$__rate_interval", "1m")
        for found in watched.values()
        for one in found
    }

    def empty() -> list[str]:
        asked = [name for name in filled if name in watched["dashboard.json"]]
        return [one for one in asked if not query(prometheus, filled[one])]

    told(empty)
    for one in filled.values():
        query(prometheus, one)
    firing = query(prometheus, 'ALERTS{alertstate="firing"}')
    assert firing == []


def test_a_trace_leads_from_the_caller_into_preprocess(
    observed: Observed, client: EmbedderClient, image: bytes, tmp_path: Path
) -> None:
    """From the clients, through the gateway and the HTTP API; of other calls nobody is told.

    Triton 2.51 passes over one call in twenty (docs/monitoring.md): each way is gone several times.
    """
    tracer = TracerProvider().get_tracer("caller")

    async def by_asyncio() -> None:
        async with AsyncEmbedderClient(observed.server.grpc_url, timeout=SERVED_S) as other:
            await other.embed([image] * 3)

    def by_api() -> None:
        context = get_current_span().get_span_context()
        header = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        body = {"input": pictures(image), "model": MODEL}
        assert observed.ask("/v1/embeddings", body, traceparent=header) == 200

    with gateway(tmp_path / "gateway", [observed.server]) as rig:
        until(lambda: rig.http("GET", "/healthz")[0] == 200, SERVED_S, "no server")
        url, tls = f"localhost:{rig.port}", TLS(rig.folder / folder.CERTIFICATE)
        metadata = token(KEYS[0][1])
        with EmbedderClient(url, tls=tls, metadata=metadata, timeout=SERVED_S) as through:
            ways: dict[str, tuple[int, Callable[[], object]]] = {
                "the client": (1, lambda: client.embed([image])),
                "the asyncio client": (3, lambda: asyncio.run(by_asyncio())),
                "the gateway": (1, lambda: through.embed([image])),
                "the HTTP API": (1, by_api),
            }
            callers: dict[str, list[Any]] = {way: [] for way in ways}
            for way, (_, call) in ways.items():
                for _ in range(8):
                    with tracer.start_as_current_span(way) as span:
                        call()
                    callers[way].append(span)
                    client.embed([image])
    told(
        lambda: [
            way
            for way, (count, _) in ways.items()
            if not any(complete(observed, span, count) for span in callers[way])
        ]
    )
    known = {trace_of(span)[0] for spans in callers.values() for span in spans}
    assert {span.trace for span in observed.collector.spans} <= known
    for way, (count, _) in ways.items():
        for span in callers[way]:
            if complete(observed, span, count):
                check_spans(observed, trace_of(span)[0])


class Heard(grpc.UnaryUnaryClientInterceptor):
    """Notes which trace the embedding requests of a client bring."""

    def __init__(self) -> None:
        self.traces: list[str] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        if details.method.endswith("/ModelInfer"):
            self.traces.append(dict(details.metadata).get("traceparent", ""))
        return continuation(details, request)


def test_each_request_of_a_call_brings_the_callers_trace(observed: Observed, image: bytes) -> None:
    """Those that other threads send too; a trace that the caller names itself goes first."""
    tracer, heard, named = TracerProvider().get_tracer("caller"), Heard(), "00-1-2-03"
    metadata: dict[str, str] = {}
    url = observed.server.grpc_url
    with EmbedderClient(
        url, timeout=SERVED_S, interceptors=[heard], metadata=lambda: metadata
    ) as client:
        client.embed([image])
        for call, requests in (
            (lambda: client.embed([image] * 20), 2),
            (lambda: list(client.embed_iter([image] * 5, batch=2)), 3),
        ):
            heard.traces.clear()
            with tracer.start_as_current_span("call") as span:
                call()
            trace, caller = trace_of(span)
            assert [one.split("-")[1:3] for one in heard.traces] == [[trace, caller]] * requests
        metadata["Traceparent"] = named
        heard.traces.clear()
        with tracer.start_as_current_span("call"):
            client.embed([image])
        metadata.clear()
        client.embed([image])
    assert heard.traces == [named, ""]


def test_a_client_loads_nothing_of_opentelemetry() -> None:
    code = (
        "import sys; from unified_embedding.client import EmbedderClient, _metadata; "
        "assert _metadata.pairs({}) == []; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def trace_of(caller: Any) -> tuple[str, str]:
    """The ids of a span's trace and of itself, in hexadecimal."""
    context = caller.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def complete(observed: Observed, caller: Any, count: int) -> bool:
    """Whether the collector has two spans for each picture, in an unbroken line from the caller."""
    trace, root = trace_of(caller)
    spans = observed.collector.of(trace).values()
    own = [span for span in spans if span.name in ("decode", "resize")]
    return len(own) == 2 * count and all(line(observed, trace, one)[-1] == root for one in own)


def check_spans(observed: Observed, trace: str) -> None:
    """Decode and resize follow one another, below `preprocess`, below the ensemble."""
    spans = observed.collector.of(trace)
    own = {
        name: [span for span in spans.values() if span.name == name]
        for name in ("decode", "resize")
    }
    for span in [*own["decode"], *own["resize"]]:
        above = {spans[one].name for one in line(observed, trace, span) if one in spans}
        assert {"preprocess", "unified_embedding"} <= above
        assert span.ended >= span.began
    assert sorted(one.ended for one in own["decode"]) == sorted(one.began for one in own["resize"])


def line(observed: Observed, trace: str, span: Span) -> list[str]:
    """The ids of what stands above a span, up to the first that the collector does not know."""
    spans, above = observed.collector.of(trace), [span.parent]
    while above[-1] in spans:
        above.append(spans[above[-1]].parent)
    return above


def test_a_death_is_seen(
    observed: Observed, client: EmbedderClient, image: bytes, prometheus: str
) -> None:
    """The alert comes from the figure that the next server shows."""
    expression = 'ALERTS{alertname="EmbedderRestarted", alertstate="firing"}'
    told(lambda: not query(prometheus, "embedder_start_time_seconds"))
    assert query(prometheus, expression) == []
    os.kill(stub_of(observed.server, "binarizer"), signal.SIGKILL)
    told(lambda: not query(prometheus, expression))
    client.embed([image])
