"""The chart's gateway is the one of deploy/gateway, and Envoy takes its configuration."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("helm_python", reason="the extra `deploy` is not installed")

import helm_python as helm
import yaml

from unified_embedding.errors import SetupError
from unified_embedding.gateway import envoy, folder

TOLD = "gateway.enabled=true,gateway.api=api.web:9000,gateway.rate=7"


@pytest.fixture
def resources(root: Path) -> dict[str, Any]:
    with helm.Chart.load(root / "deploy/chart") as chart:
        files = chart.render(helm.parse_set_string(TOLD), name="blue", namespace="embed")
    (text,) = [text for name, text in files.items() if name.endswith("/gateway.yaml")]
    return {item["kind"]: item for item in yaml.safe_load_all(text)}


@pytest.fixture
def configuration(resources: dict[str, Any]) -> dict[str, str]:
    return resources["ConfigMap"]["data"]


def test_it_differs_from_the_programs_in_how_servers_are_found_alone(
    configuration: dict[str, str],
) -> None:
    rendered = yaml.safe_load(configuration["envoy.yaml"])
    ours = folder.Settings(address="0.0.0.0", api="api.web:9000", rate=7)
    program = yaml.safe_load(folder.configuration(ours))
    clusters = [each["static_resources"]["clusters"][0] for each in (rendered, program)]
    found = [
        {key: cluster.pop(key) for key in list(cluster) if key in names}
        for cluster, names in zip(
            clusters,
            (("type", "dns_refresh_rate", "load_assignment"), ("type", "eds_cluster_config")),
            strict=True,
        )
    ]
    assert rendered == program
    assert found[0]["type"] == "STRICT_DNS"
    (locality,) = found[0]["load_assignment"]["endpoints"]
    (server,) = locality["lb_endpoints"]
    address = server["endpoint"]["address"]["socket_address"]
    # The release's headless Service, which names every pod.
    assert address == {"address": "blue.embed.svc", "port_value": 8001}
    # Health is a picture, by HTTP.
    assert server["endpoint"]["health_check_config"] == {"port_value": 8000}


def test_envoy_takes_it_in_the_folder_that_the_pod_has(
    resources: dict[str, Any], configuration: dict[str, str], tmp_path: Path
) -> None:
    try:
        program = envoy.find()
    except SetupError as error:
        pytest.skip(str(error))
    (container,) = resources["Deployment"]["spec"]["template"]["spec"]["containers"]
    for mount in container["volumeMounts"]:
        if "subPath" in mount:
            inside = Path(mount["mountPath"]).relative_to(container["workingDir"])
            (tmp_path / inside).write_text(configuration[mount["subPath"]])
    folder.certify(tmp_path)
    folder.write_keys(tmp_path, [("team", 32 * "a")])
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {f"{container['workingDir']}/{name}" for name in ("keys", "tls")} <= mounted
    assert container["command"][:3] == ["envoy", "--config-path", "envoy.yaml"]
    run = subprocess.run(
        [program, "--mode", "validate", *container["command"][1:]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
