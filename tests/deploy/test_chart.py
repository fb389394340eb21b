"""deploy/chart over a matrix of values: lint, render, strict schemas, and what all of them hold."""

import functools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("helm_python", reason="the extra `deploy` is not installed")
pytest.importorskip("kubernetes_validate", reason="the extra `deploy` is not installed")

import helm_python as helm
import yaml
from programs import run_program
from strict_schemas import complaints, pods

from unified_embedding.cli.main import loaded
from unified_embedding.image import SETTINGS
from unified_embedding.serving import tritonserver
from unified_embedding.spec import EmbedderSpec

CHART = "deploy/chart"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SCALED = (
    "autoscaling.enabled=true,autoscaling.picturesPerSecond=300,serviceMonitor.enabled=true,"
    "serviceMonitor.labels.release=prometheus"
)
ROUTED = "route.enabled=true,route.gateway=edge,route.gatewayNamespace=edge,route.hostnames={a.b}"
BACKFILL = (
    "backfill.enabled=true,backfill.image=registry/backfill:0.1.0,backfill.out=s3://bucket/corpus,"
    "backfill.sources={s3://bucket/a.parquet,s3://bucket/b c.tar},backfill.credentials=s3"
)
LIMITS = (
    "limits.UNIFIED_EMBEDDING_MAX_IMAGE_BYTES=20000000,"
    "limits.UNIFIED_EMBEDDING_IMAGE_FORMATS=JPEG\\,PNG"
)
TRACED = "tracing.endpoint=http://collector.monitoring:4318"
PINNED = "embedder.engine=openvino-fp32-0123456789ab,image.digest=sha256:" + 64 * "a"
JOB = "engine.source=job,engine.job.repository=unified-embedding,engine.job.tag=1-build-tools"
PLUGS = "nodeSelector.kind=a,tolerations[0].key=x,tolerations[0].operator=Exists"

# Name -> profile file, or none, and what `--set` sets.
MATRIX = {
    "as delivered": (None, ""),
    "bf16": ("cpu-bf16", ""),
    "gpu": ("gpu", ""),
    "gpu without one to spare": ("gpu", "maxSurge=0,replicas=1"),
    "gpu, engine from a claim": ("gpu", "engine.source=claim,engine.claim=plans"),
    "cpu, engine by a job": (None, f"{JOB},engine.job.storageClass=nfs,{PLUGS}"),
    "pinned": (None, f"{PINNED},image.pullSecrets={{registry}}"),
    "limits": (None, LIMITS),
    "without network policy": (None, "networkPolicy.enabled=false"),
    "traced": (None, TRACED),
    "traced on a gpu": ("gpu", TRACED),
    "autoscaled": (None, SCALED),
    "gateway": (None, "gateway.enabled=true"),
    "routed": (None, ROUTED),
    "routed by default": (None, f"{ROUTED},route.default=true"),
    "kserve": (None, "kserve.enabled=true"),
    "kserve, autoscaled, gpu": ("gpu", f"kserve.enabled=true,{SCALED}"),
    "back-fill": (None, BACKFILL),
    "everything": (None, ",".join((SCALED, ROUTED, BACKFILL, LIMITS, PINNED))),
    "everything on a gpu": ("gpu", ",".join((SCALED, ROUTED, BACKFILL, LIMITS))),
}
REFUSED = {
    "a canary": ("canaryTrafficPercent=10", "canaryTrafficPercent"),
    "KServe's canary": (
        "kserve.enabled=true,kserve.canaryTrafficPercent=10", "canaryTrafficPercent",
    ),
    "a weight": (f"{ROUTED},route.weight=10", "weight"),
    "no version": ("embedder.version=", "/embedder/version"),
    "half a version": ("embedder.version=4a135b", "/embedder/version"),
    "an engine of another precision": (
        "embedder.engine=openvino-bf16-0123456789ab", "is no openvino-fp32 engine",
    ),
    "a moving tag": ("image.tag=latest", "/image/tag"),
    "no image": ("image.tag=", "/image"),
    "a precision the node chooses": ("precision=auto", "/precision"),
    "bf16 on any node": ("precision=bf16", "/nodeSelector"),
    "fp16 on a CPU": ("precision=fp16", "/precision"),
    "a GPU profile without GPU": ("profile=gpu,precision=fp16,nodeSelector.a=b", "/resources/gpus"),
    "a plan baked into an image": (
        "profile=gpu,precision=fp16,nodeSelector.a=b,resources.gpus=1", "/engine/source",
    ),
    "a claim without name": ("engine.source=claim", "/engine/claim"),
    "a job without image": ("engine.source=job", "/engine/job"),
    "little shared memory": ("resources.shmMiB=64", "/resources/shmMiB"),
    "half a core": ("resources.cores=0", "/resources/cores"),
    "no time to drain": ("stop.drainSeconds=0", "/stop/drainSeconds"),
    "autoscaling without a measurement": (
        "autoscaling.enabled=true,serviceMonitor.enabled=true", "/autoscaling/picturesPerSecond",
    ),
    "autoscaling without metrics": (
        "autoscaling.enabled=true,autoscaling.picturesPerSecond=9", "/serviceMonitor/enabled",
    ),
    "a misspelt value": ("replicaCount=3", "replicaCount"),
    "an unknown limit": ("limits.MAX_IMAGE_BYTES=3", "MAX_IMAGE_BYTES"),
    "everybody as a caller": ("networkPolicy.callers[0]=null", "/networkPolicy/callers"),
    "a back-fill of nothing": ("backfill.enabled=true", "/backfill"),
}  # fmt: skip


def values_of(root: Path, variant: str) -> dict[str, Any]:
    profile, told = MATRIX[variant]
    values = (
        yaml.safe_load((root / CHART / f"profiles/{profile}.yaml").read_text()) if profile else {}
    )
    return merged(values, helm.parse_set_string(told) if told else {})


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(values)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def rendered(root: Path, values: dict[str, Any], name: str = "blue") -> list[dict[str, Any]]:
    with helm.Chart.load(root / CHART) as chart:
        files = chart.render(values, name=name, namespace="embed")
    manifests = [text for file, text in files.items() if not file.endswith("NOTES.txt")]
    return [item for text in manifests for item in yaml.safe_load_all(text) if item]


@functools.cache
def of(root: Path, variant: str) -> list[dict[str, Any]]:
    return rendered(root, values_of(root, variant))


def kind(resources: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one resource of a kind, those of gateway and engine beside the servers aside."""
    found = [item for item in resources if item["kind"] == name]
    if len(found) > 1:
        found = [item for item in found if item["metadata"]["name"] == "blue"]
    (one,) = found
    return one


def serving_pod(resources: list[dict[str, Any]]) -> dict[str, Any]:
    """The pod's spec with the server in it, of the Deployment or of KServe's two halves."""
    kinds = {item["kind"] for item in resources}
    if "Deployment" in kinds:
        return kind(resources, "Deployment")["spec"]["template"]["spec"]
    predictor = kind(resources, "InferenceService")["spec"]["predictor"]
    return {**kind(resources, "ServingRuntime")["spec"], **predictor}


def server(resources: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = serving_pod(resources)["containers"]
    return container


def walk(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, list):
        for item in node:
            yield from walk(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from walk(value)


variants = pytest.mark.parametrize("variant", MATRIX)


@variants
def test_lint_finds_nothing(root: Path, variant: str) -> None:
    report = helm.lint(root / CHART, values_of(root, variant), strict=True)
    assert report["errors"] == []
    assert {found["error"] for found in report["messages"]} <= {"icon is recommended"}


def test_every_resource_is_valid_by_strict_schemas(root: Path) -> None:
    found = [item for variant in MATRIX for item in of(root, variant)]
    assert complaints(root, found) == []
    kinds = {item["kind"] for item in found}
    assert kinds == {
        "ConfigMap", "Deployment", "GRPCRoute", "InferenceService", "Job", "NetworkPolicy",
        "PersistentVolumeClaim", "PodDisruptionBudget", "RayJob", "ScaledObject", "Service",
        "ServiceMonitor", "ServingRuntime",
    }  # fmt: skip


@pytest.mark.parametrize("resource", [
    "Deployment", "GRPCRoute", "InferenceService", "RayJob", "ScaledObject", "ServiceMonitor",
    "ServingRuntime",
])  # fmt: skip
def test_the_strict_schemas_see_an_unknown_field(root: Path, resource: str) -> None:
    """Deep inside, where schemas of custom resources are usually open."""
    variant = {"Deployment": "as delivered", "InferenceService": "kserve"}.get(
        resource, "everything"
    )
    variant = "kserve" if resource == "ServingRuntime" else variant
    broken = json.loads(json.dumps(kind(of(root, variant), resource)))
    inside = {
        "Deployment": lambda spec: spec["template"]["spec"]["containers"][0],
        "GRPCRoute": lambda spec: spec["rules"][0]["matches"][0]["method"],
        "InferenceService": lambda spec: spec["predictor"]["model"],
        "RayJob": lambda spec: pods(spec)[0]["containers"][0],
        "ScaledObject": lambda spec: spec["triggers"][0],
        "ServiceMonitor": lambda spec: spec["endpoints"][0],
        "ServingRuntime": lambda spec: spec["containers"][0],
    }
    inside[resource](broken["spec"])["misspelt"] = 1
    assert any("misspelt" in line for line in complaints(root, [broken]))


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_would_do_harm_are_refused_by_name(root: Path, case: str) -> None:
    told, named = REFUSED[case]
    with pytest.raises(helm.HelmError) as refused:
        rendered(root, helm.parse_set_string(told))
    assert named in str(refused.value)


@variants
def test_no_weights_and_no_canary_between_versions(root: Path, variant: str) -> None:
    keys = {key for key, _ in walk(of(root, variant))}
    assert not {key for key in keys if re.search("weight|canary|traffic", key, re.IGNORECASE)}


@variants
def test_every_selector_names_the_version(root: Path, variant: str) -> None:
    """Kubernetes refuses to change a Deployment's selector: a release keeps its version."""
    resources = of(root, variant)
    version = resources and EmbedderSpec.load(root / "models/unified-embedder-lite0").version
    if "Deployment" in {item["kind"] for item in resources}:
        spec = kind(resources, "Deployment")["spec"]
        labels, selector = spec["template"]["metadata"]["labels"], spec["selector"]["matchLabels"]
        assert selector["embedding-version"] == version
    else:
        labels = kind(resources, "InferenceService")["spec"]["predictor"]["labels"]
    selectors = [
        kind(resources, "Service")["spec"]["selector"],
        kind(resources, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        *(
            spread["labelSelector"]["matchLabels"]
            for spread in serving_pod(resources)["topologySpreadConstraints"]
        ),
        *(
            item["spec"]["podSelector"]["matchLabels"]
            for item in resources
            if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] == "blue"
        ),
    ]
    for selector in selectors:
        assert selector["embedding-version"] == version
        assert selector.items() <= labels.items()
    other = rendered(
        root, merged(values_of(root, variant), {"embedder": {"version": 12 * "b", "engine": ""}})
    )
    assert (
        kind(other, "Service")["spec"]["selector"] != kind(resources, "Service")["spec"]["selector"]
    )


@variants
def test_no_pod_runs_as_root_or_may_write_its_image(root: Path, variant: str) -> None:
    for resource in of(root, variant):
        for pod in pods(resource):
            containers = [*pod["containers"], *pod.get("initContainers", [])]
            for container in containers:
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                assert security["capabilities"] == {"drop": ["ALL"]}
                # Ray writes where it likes.
                assert security.get("readOnlyRootFilesystem", False) or resource["kind"] == "RayJob"
                assert container["resources"]["limits"]
            if resource["kind"] == "ServingRuntime":
                pod = serving_pod(of(root, variant))
            assert pod["securityContext"]["runAsUser"] == 10001
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False


def mebibytes(quantity: str) -> int:
    assert quantity.endswith("Mi"), quantity
    return int(quantity.removesuffix("Mi"))


@variants
def test_shared_memory_fits_under_the_memory_limit(root: Path, variant: str) -> None:
    """A volume in memory counts as its container's: beyond the limit the server is killed."""
    values = merged(
        yaml.safe_load((root / CHART / "values.yaml").read_text()), values_of(root, variant)
    )
    pod, container = serving_pod(of(root, variant)), server(of(root, variant))
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    shm = mounted["/dev/shm"]["emptyDir"]
    assert shm["medium"] == "Memory"
    limits = container["resources"]["limits"]
    assert container["resources"]["requests"] == limits
    assert (
        mebibytes(limits["memory"]) - mebibytes(shm["sizeLimit"])
        == values["resources"]["memoryMiB"]
    )
    # Whatever is written has a volume, and so a bound.
    assert {"/dev/shm", "/run/unified-embedding", "/tmp"} <= set(mounted)
    for volume in volumes.values():
        assert "persistentVolumeClaim" in volume or volume["emptyDir"]["sizeLimit"]


@variants
def test_a_stop_has_time_to_drain_and_to_end(root: Path, variant: str) -> None:
    pod, container = serving_pod(of(root, variant)), server(of(root, variant))
    drain = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    told = tritonserver._exit_timeout(container["args"])
    assert drain >= 3
    assert pod["terminationGracePeriodSeconds"] >= drain + told + 5


@variants
def test_probes_ask_for_pictures_and_outlast_a_busy_server(root: Path, variant: str) -> None:
    values = values_of(root, variant)
    container = server(of(root, variant))
    instances = int(option(container["args"], "--preprocess-instances"))
    probes = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    for name, probe in probes.items():
        if name == "readiness" and values.get("profile", "cpu") == "cpu":
            # The launcher closes the ports of a server with a dead process
            # (tests/e2e/test_supervised.py).
            assert probe["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
            continue
        program, command, *flags = probe["exec"]["command"]
        assert program == "unified-embedding"
        asked = loaded(command).make_context(command, list(flags)).params
        assert asked["as_probe"]
        # More calls at once than a model has processes.
        assert asked["pictures"] > instances
        assert probe["timeoutSeconds"] > asked["timeout"]
    assert (
        loaded("status")
        .make_context("status", probes["liveness"]["exec"]["command"][2:])
        .params["timeout"]
        >= 30
    )
    assert probes["startup"]["failureThreshold"] * probes["startup"]["periodSeconds"] >= 300


def option(arguments: list[str], name: str) -> str:
    (found,) = [item for item in arguments if item.startswith(f"{name}=")]
    return found.partition("=")[2]


@variants
def test_the_server_knows_its_options_and_triton_its_flags(root: Path, variant: str) -> None:
    container = server(of(root, variant))
    program, command = container["command"]
    assert (program, command) == ("unified-embedding", "serve")
    asked = loaded("serve").make_context("serve", list(container["args"])).params
    version, _, engine = asked["expect"].partition(" ")
    assert version == EmbedderSpec.load(root / "models/unified-embedder-lite0").version
    assert re.match(r"(openvino-(fp32|bf16)|tensorrt-fp16)(-|$)", engine)
    assert {flag.partition("=")[0] for flag in asked["flags"]} <= triton_flags()
    for protocol in ("http", "grpc", "metrics"):
        assert option(asked["flags"], f"--{protocol}-address") == "0.0.0.0"
    for variable in container["env"]:
        assert variable["name"] in {tritonserver.OPERATOR_KEY, ENDPOINT, *SETTINGS}
        assert "valueFrom" in variable or isinstance(variable["value"], str)


@functools.cache
def triton_flags() -> set[str]:
    pytest.importorskip("pytriton", reason="the extra `serve` is not installed")
    run = subprocess.run(
        [sys.executable, "-m", "unified_embedding.serving.tritonserver", "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    known = set(re.findall(r"--[a-z0-9-]+", run.stdout + run.stderr))
    assert len(known) > 50
    return known


def test_limits_reach_the_server_unchanged(root: Path) -> None:
    env = {item["name"]: item.get("value") for item in server(of(root, "limits"))["env"]}
    assert env["UNIFIED_EMBEDDING_MAX_IMAGE_BYTES"] == "20000000"
    assert env["UNIFIED_EMBEDDING_IMAGE_FORMATS"] == "JPEG,PNG"


def test_only_gateway_and_prometheus_reach_the_server_and_it_reaches_nobody(root: Path) -> None:
    policy = kind(of(root, "as delivered"), "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    callers, prometheus = policy["ingress"]
    assert {port["port"] for port in callers["ports"]} == {8001, 8000}
    assert [port["port"] for port in prometheus["ports"]] == [8002]
    assert all(peer for rule in policy["ingress"] for peer in rule["from"])


def test_traces_reach_the_collector_and_nothing_else_is_reached(root: Path) -> None:
    for variant in ("traced", "traced on a gpu"):
        container = server(of(root, variant))
        env = {item["name"]: item.get("value") for item in container["env"]}
        assert env[ENDPOINT] == "http://collector.monitoring:4318"
        policy = kind(of(root, variant), "NetworkPolicy")["spec"]
        ports = [port["port"] for rule in policy["egress"] for port in rule["ports"]]
        assert sorted(ports) == [53, 53, 4318]
        assert all(rule["to"] for rule in policy["egress"])
        # NVIDIA's own server is told by flags; ours tells itself.
        told = any(
            flag.startswith("--trace-config=opentelemetry,url=") for flag in container["args"]
        )
        assert told == variant.endswith("gpu")


def test_the_service_shows_every_pod_to_a_gateway(root: Path) -> None:
    spec = kind(of(root, "as delivered"), "Service")["spec"]
    assert spec["clusterIP"] == "None"
    ports = {port["name"]: port for port in spec["ports"]}
    assert ports["grpc"]["appProtocol"] == "kubernetes.io/h2c"
    assert {name: port["port"] for name, port in ports.items()} == {
        "grpc": 8001,
        "http": 8000,
        "metrics": 8002,
    }


def test_each_release_is_a_job_of_its_own_in_prometheus(root: Path) -> None:
    """Else the alert on mixed versions would take blue and green for one release."""
    values = values_of(root, "autoscaled")
    jobs = set()
    for name in ("blue", "green"):
        (endpoint,) = kind(rendered(root, values, name), "ServiceMonitor")["spec"]["endpoints"]
        assert endpoint["port"] == "metrics"
        (job,) = endpoint["relabelings"]
        assert job["targetLabel"] == "job"
        # As the rules select it.
        assert "unified-embedding" in job["replacement"]
        jobs.add(job["replacement"])
    assert len(jobs) == 2


def test_the_engine_is_built_once_for_each_image_model_and_kind_of_node(root: Path) -> None:
    def engine(**over: Any) -> tuple[str, str, str]:
        resources = rendered(root, merged(values_of(root, "gpu"), over))
        job = kind(resources, "Job")
        (build,) = job["spec"]["template"]["spec"]["containers"]
        env = {item["name"]: item["value"] for item in build["env"]}
        (wait,) = serving_pod(resources)["initContainers"]
        served = option(server(resources)["args"], "--engine")
        assert served == f"{env['REPOSITORY']}/embedder"
        assert f"{served}/1/engine.json" in wait["command"][-1]
        assert (
            job["spec"]["template"]["spec"]["nodeSelector"]
            == serving_pod(resources)["nodeSelector"]
        )
        assert (env["TARGET"], env["PRECISION"]) == ("tensorrt", "fp16")
        return job["metadata"]["name"], served, json.dumps(job["spec"], sort_keys=True)

    first = engine()
    # What does not concern the build changes no Job: Kubernetes would refuse it.
    pinned = {"engine": "tensorrt-fp16-0123456789ab"}
    assert engine(replicas=5, serviceMonitor={"enabled": True}, embedder=pinned) == first
    for over in (
        {"engine": {"job": {"tag": "0.2.0-gpu-build-tools"}}},
        {"engine": {"job": {"model": "models/se"}}},
        {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"}},
    ):
        name, served, spec = engine(**over)
        assert (name != first[0], served != first[1], spec != first[2]) == (True, True, True)
    # Kubernetes refuses another spec under the same name; the engine is the same.
    for over in (
        {"resources": {"cores": 4}},
        {"image": {"pullPolicy": "Always"}},
    ):
        name, served, spec = engine(**over)
        assert (name != first[0], served == first[1], spec != first[2]) == (True, True, True)
    # The engine of an image that was replaced stays, for pods that still run it.
    keep = kind(of(root, "gpu"), "PersistentVolumeClaim")["metadata"]["annotations"]
    assert keep == {"helm.sh/resource-policy": "keep"}


def test_autoscaling_sets_replicas_alone(root: Path) -> None:
    scaled = of(root, "autoscaled")
    assert "replicas" not in kind(scaled, "Deployment")["spec"]
    assert kind(of(root, "as delivered"), "Deployment")["spec"]["replicas"] == 2
    target = kind(scaled, "ScaledObject")["spec"]["scaleTargetRef"]["name"]
    assert target == kind(scaled, "Deployment")["metadata"]["name"]


def test_the_job_runs_a_script_that_knows_its_variables(root: Path) -> None:
    (build,) = pods(kind(of(root, "gpu"), "Job"))[0]["containers"]
    script = (root / build["command"][1]).read_text()
    for variable in build["env"]:
        assert re.search(rf"\$\{{?{variable['name']}\b", script), variable["name"]


def test_the_back_fill_runs_a_command_that_there_is(root: Path) -> None:
    spec = kind(of(root, "back-fill"), "RayJob")["spec"]
    program, command, *words = shlex.split(spec["entrypoint"])
    assert (program, command) == ("unified-embedding", "backfill")
    asked = loaded(command).make_context(command, words).params
    assert asked["inputs"] == [
        "s3://bucket/a.parquet",
        "s3://bucket/b c.tar",
    ]
    assert asked["out"] == "s3://bucket/corpus"
    assert asked["url"] == ["dns:///blue.embed:8001"]
    allowed = kind(of(root, "back-fill"), "NetworkPolicy")["spec"]["ingress"][0]["from"]
    for template in (
        spec["rayClusterSpec"]["headGroupSpec"],
        *spec["rayClusterSpec"]["workerGroupSpecs"],
    ):
        labels = template["template"]["metadata"]["labels"]
        assert {"podSelector": {"matchLabels": labels}} in allowed
    constraints = (root / "constraints.txt").read_text().splitlines()
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in constraints


def test_the_chart_is_of_this_version(root: Path) -> None:
    told = run_program(root, "-c", "import unified_embedding; print(unified_embedding.__version__)")
    chart = yaml.safe_load((root / CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == told.stdout.strip()
