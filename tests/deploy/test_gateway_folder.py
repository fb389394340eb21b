"""What a gateway's folder is written from: keys, servers, settings, and what is refused of them."""

import re
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from programs import run_program

from unified_embedding.errors import KeyFileError, SettingsError, SetupError
from unified_embedding.gateway import envoy, folder
from unified_embedding.serving.local_server import free_ports

KEY, OTHER = "k" * 32, "o" * 64 + "=="
BY_NAME = """\
type: STRICT_DNS
      load_assignment:
        cluster_name: embedder
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address: {socket_address: {address: blue.embed.svc, port_value: 8001}}
                  health_check_config: {port_value: 8000}
                metadata: {filter_metadata: {envoy.lb: {version: abc, default: "yes"}}}"""


def test_a_team_may_have_several_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"# who, key\n\nsearch {KEY}\n  search\t{OTHER}  # the new one\nads {KEY}2\n")
    expected = [("search", KEY), ("search", OTHER), ("ads", f"{KEY}2")]
    assert folder.read_keys(file) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("search", "line 1 is not TEAM KEY"),
        (f"ads {KEY}\n{KEY} search team", "line 2 is not TEAM KEY"),
        ("search short-secret", "line 1 is not TEAM KEY"),
        (f"search {KEY};x", "line 1 is not TEAM KEY"),
        (f"{'n' * 65} {KEY}", "line 1 is not TEAM KEY"),
        (f"ads {KEY}\nsearch {KEY}", "a key of search is one of ads too"),
        ("# nobody\n", "holds no key"),
    ],
)
def test_a_malformed_line_is_named_and_its_key_is_not(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(text)
    with pytest.raises(KeyFileError, match=said) as error:
        folder.read_keys(file)
    assert KEY not in str(error.value)
    assert "short-secret" not in str(error.value)


def test_a_missing_file_of_keys_is_said(root: Path, tmp_path: Path) -> None:
    ran = run_program(
        root, "-m", "unified_embedding.cli", "gateway", "keys", str(tmp_path / "none"),
        "--folder", str(tmp_path / "gateway"),
    )  # fmt: skip
    assert ran.returncode == 2
    assert "gateway: the file of keys cannot be read" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "gateway").exists()


def test_only_the_owner_reads_the_keys(tmp_path: Path) -> None:
    folder.write_keys(tmp_path, [("search", KEY)])
    for name in (folder.ENVOY_KEYS, folder.API_KEYS):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert KEY not in (tmp_path / folder.API_KEYS).read_text()


def test_servers_are_addresses_with_ports() -> None:
    assert folder.Server.parse("10.0.0.7:8001") == folder.Server("10.0.0.7", 8001, 8000)
    six = folder.Server.parse("[::1]:9001:9000")
    assert (six.address, six.http_port, six.grpc_url) == ("::1", 9000, "[::1]:9001")
    for text in ("", "10.0.0.7", "host:8001", "10.0.0.7:0", "10.0.0.7:70000", "::1:8001", "a:b:c"):
        with pytest.raises(SettingsError, match=r"is not a server; give ADDRESS:GRPC_PORT"):
            folder.Server.parse(text)


def test_settings_that_cannot_be_are_refused() -> None:
    for rate in (0, -1, 10_000_000):
        with pytest.raises(SettingsError, match="calls a second"):
            folder.Settings(rate=rate)
    for api in ("", "host", "host:port", ":8088"):
        with pytest.raises(SettingsError, match="HOST:PORT"):
            folder.Settings(api=api)


def test_a_gateway_says_what_it_lacks(root: Path, tmp_path: Path) -> None:
    port, admin_port = free_ports(2)
    ran = run_program(
        root, "-m", "unified_embedding.cli", "gateway", "run", "--folder", str(tmp_path),
        "--port", str(port), "--admin-port", str(admin_port),
    )  # fmt: skip
    assert ran.returncode == 2
    assert f"there is no {tmp_path / folder.CERTIFICATE}" in ran.stderr


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
def test_a_port_in_use_is_named_before_anything_starts(
    root: Path, tmp_path: Path, option: str
) -> None:
    """Envoy would end by itself; another one's admin port would answer in its place."""
    ports = dict(zip(("--port", "--admin-port"), map(str, free_ports(2)), strict=True))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[option] = str(taken.getsockname()[1])
        ran = run_program(
            root, "-m", "unified_embedding.cli", "gateway", "run", "--demo",
            "--folder", str(tmp_path), *(word for pair in ports.items() for word in pair),
        )  # fmt: skip
    assert ran.returncode == 2
    assert f"port {ports[option]} is in use" in ran.stderr
    assert option in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("servers", [folder.BY_FILE, BY_NAME], ids=["by file", "by name"])
@pytest.mark.parametrize("prefix", ["", "v2-"])
def test_envoy_takes_the_configuration(tmp_path: Path, servers: str, prefix: str) -> None:
    """With servers in a file, and by the name of a Service as the chart has them."""
    try:
        program = envoy.find()
        folder.certify(tmp_path)
    except SetupError as error:
        pytest.skip(str(error))
    folder.write_keys(tmp_path, [("search", KEY)])
    folder.write_servers(tmp_path, [folder.Server("10.0.0.7", 8001, version="abc")])
    settings = folder.Settings(address="0.0.0.0", prefix=prefix, servers=servers)
    folder.write_configuration(tmp_path, settings)
    text = (tmp_path / "envoy.yaml").read_text()
    assert not re.search(r"\$\{", text)
    assert f'exact: "{prefix}unified_embedding"' in text
    checked = subprocess.run(
        [program, "--mode", "validate", "-c", "envoy.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr[-1000:]
