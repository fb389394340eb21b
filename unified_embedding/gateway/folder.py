"""A gateway's folder: Envoy's configuration, and what it follows while it runs.

    envoy.yaml, tls.yaml       how it works, from deploy/gateway
    tls/tls.crt, tls/tls.key   its certificate
    keys/envoy.json            the teams' keys; keys/api.txt has their digests, for the HTTP API
    servers/endpoints.json     where the servers are

Envoy takes over a file that is replaced as a whole, and keeps what it has when the new one is
malformed.
"""

import hashlib
import ipaddress
import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Final

from unified_embedding.checkout import IS_CHECKOUT, ROOT
from unified_embedding.errors import KeyFileError, SettingsError, SetupError, shown
from unified_embedding.image import Limits
from unified_embedding.key_files import read_pairs
from unified_embedding.whole_files import whole_file

SOURCE: Final = ROOT / "deploy" / "gateway" if IS_CHECKOUT else Path(__file__).parent
CERTIFICATE: Final = Path("tls", "tls.crt")
CERTIFICATE_KEY: Final = Path("tls", "tls.key")
ENVOY_KEYS: Final = Path("keys", "envoy.json")
API_KEYS: Final = Path("keys", "api.txt")
ENDPOINTS: Final = Path("servers", "endpoints.json")
BY_FILE: Final = """\
type: EDS
      eds_cluster_config:
        eds_config:
          resource_api_version: V3
          path_config_source: {path: servers/endpoints.json, watched_directory: {path: servers}}"""
"""The servers stand in a file. (The chart has them found by name.)"""

# What a request has besides its pictures: names, shapes, parameters.
_ENVELOPE_BYTES: Final = 65_536
_HEAP_BYTES: Final = 1_610_612_736
_TYPES: Final = "type.googleapis.com/envoy"
# A key as RFC 6750 (2.1) has it.
_KEY: Final = "[A-Za-z0-9._~+/-]{16,256}=*"
_MEANT: Final = (
    "TEAM KEY: a name of 1 to 64 letters, digits, . - _ and a key of 16 to 256 letters, digits "
    "and . - _ ~ + / (try: openssl rand -hex 32)"
)
_ADDRESS: Final = re.compile(r"(\[[^\]]+\]|[^:\[\]]+):(\d{1,5})(?::(\d{1,5}))?")
_HTTP_PORT: Final = 8000


@dataclass(frozen=True)
class Settings:
    """What differs between gateways.

    Attributes:
        address: that it listens at.
        port: for gRPC and HTTP, both by TLS.
        admin_port: of Envoy's own interface, on loopback.
        api: host:port of the HTTP API.
        api_bytes: most bytes of a body for it.
        rate: calls that a key may make in a second.
        prefix: of the models' names, where a server has several embedders.
        servers: how the servers are found, as keys of Envoy's cluster.
    """

    address: str = "127.0.0.1"
    port: int = 8443
    admin_port: int = 9901
    api: str = "127.0.0.1:8088"
    api_bytes: int = 96_000_000
    rate: int = 100
    prefix: str = ""
    servers: str = BY_FILE

    def __post_init__(self) -> None:
        """Raises SettingsError."""
        if not 1 <= self.rate <= 1_000_000:
            raise SettingsError(f"a rate of {self.rate} calls a second: give 1 to 1,000,000")
        host, _, port = self.api.rpartition(":")
        if not host or not port.isdecimal():
            raise SettingsError(f"{shown(self.api)} is not HOST:PORT of the HTTP API")


@dataclass(frozen=True)
class Server:
    """Where an embedding server listens, and the version that it serves."""

    address: str
    grpc_port: int
    http_port: int = _HTTP_PORT
    version: str = ""

    @classmethod
    def parse(cls, text: str, version: str = "") -> "Server":
        """From ADDRESS:GRPC_PORT[:HTTP_PORT]. Raises SettingsError."""
        found = _ADDRESS.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            address = str(ipaddress.ip_address(found[1].strip("[]")))
            grpc_port, http_port = int(found[2]), int(found[3] or _HTTP_PORT)
            if not (0 < grpc_port < 65_536 and 0 < http_port < 65_536):
                raise ValueError
        except ValueError:
            raise SettingsError(
                f"{shown(text)} is not a server; give ADDRESS:GRPC_PORT:HTTP_PORT with an IP "
                "address, for instance 10.0.0.7:8001:8000"
            ) from None
        return cls(address, grpc_port, http_port, version)

    @property
    def grpc_url(self) -> str:
        """host:port for gRPC."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.grpc_port}"


def configuration(settings: Settings) -> str:
    """Envoy's configuration: deploy/gateway/envoy.yaml with its names filled in."""
    host, _, port = settings.api.rpartition(":")
    names = {
        "ADDRESS": settings.address,
        "PORT": settings.port,
        "ADMIN_PORT": settings.admin_port,
        "API_HOST": host.strip("[]"),
        "API_PORT": port,
        "API_BYTES": settings.api_bytes,
        "API_TOO_LARGE": settings.api_bytes + 1,
        "HEAP_BYTES": _HEAP_BYTES,
        "PREFIX": settings.prefix,
        "RATE": settings.rate,
        "REQUEST_BYTES": Limits.from_environment().max_request_bytes + _ENVELOPE_BYTES,
        "SERVERS": settings.servers,
    }
    return Template((SOURCE / "envoy.yaml").read_text()).substitute(names)


def write_configuration(folder: Path, settings: Settings) -> None:
    """Write envoy.yaml and tls.yaml of a gateway."""
    _write(folder / "envoy.yaml", configuration(settings))
    _write(folder / "tls.yaml", (SOURCE / "tls.yaml").read_text())


def write_servers(folder: Path, servers: Sequence[Server]) -> None:
    """Say where the servers are. A running gateway sends no new call to one that is left out.

    Calls that name no version go to servers of the first one's.
    """
    endpoints = [
        {
            "endpoint": {
                "address": _address(server.address, server.grpc_port),
                "health_check_config": {"port_value": server.http_port},
            },
            "metadata": {
                "filter_metadata": {
                    "envoy.lb": {
                        "version": server.version,
                        "default": "yes" if server.version == servers[0].version else "no",
                    }
                }
            },
        }
        for server in servers
    ]
    assignment = {
        "@type": f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "embedder",
        "endpoints": [{"lb_endpoints": endpoints}],
    }
    _write(folder / ENDPOINTS, _resource(assignment))


def write_keys(folder: Path, keys: Sequence[tuple[str, str]]) -> None:
    """Write the keys of (team, key) pairs: whole for Envoy, as digests for the API.

    A running gateway and API take them over within a second or two.
    """
    digests = [f"{team} {hashlib.sha256(key.encode()).hexdigest()}\n" for team, key in keys]
    auth = {
        "@type": f"{_TYPES}.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
        "credentials": [{"client": team, "key": key} for team, key in keys],
        "key_sources": [{"header": "authorization"}, {"cookie": "unified-embedding-key"}],
        "forwarding": {"header": "x-key-name"},
    }
    extension = {
        "@type": f"{_TYPES}.config.core.v3.TypedExtensionConfig",
        "name": "keys",
        "typed_config": auth,
    }
    _write(folder / API_KEYS, "".join(digests), secret=True)
    _write(folder / ENVOY_KEYS, _resource(extension), secret=True)


def read_keys(path: Path) -> list[tuple[str, str]]:
    """The (team, key) pairs of a file with a line TEAM KEY for each; a team may have several.

    Raises:
        KeyFileError: the file is missing, or a line of it is malformed. No error shows a key.
    """
    owners: dict[str, str] = {}
    for team, key in read_pairs(path, _KEY, _MEANT):
        if key in owners:
            raise KeyFileError(
                f"{path}: a key of {team} is one of {owners[key]} too; give each a key of its own"
            )
        owners[key] = team
    if not owners:
        raise KeyFileError(f"{path} holds no key; write a line TEAM KEY for each")
    return [(team, key) for key, team in owners.items()]


def certify(folder: Path) -> None:
    """Make a certificate for this machine's loopback, signed by itself. Raises SetupError."""
    certificate, key = folder / CERTIFICATE, folder / CERTIFICATE_KEY
    certificate.parent.mkdir(parents=True, exist_ok=True)
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
        "-nodes", "-days", "365", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ]  # fmt: skip
    try:
        with whole_file(key) as new_key, whole_file(certificate) as new_certificate:
            command += ["-keyout", str(new_key), "-out", str(new_certificate)]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise SetupError(f"openssl made no certificate: {made.stderr.strip()[-300:]}")
    except FileNotFoundError:
        raise SetupError(
            "there is no openssl here to make a certificate; install it, or put your own at "
            f"{certificate} and {key}"
        ) from None


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _resource(resource: dict[str, Any]) -> str:
    return json.dumps({"resources": [resource]}, indent=2) + "\n"


def _write(path: Path, text: str, secret: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as fresh:
        mode = 0o600 if secret else 0o644
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
            file.write(text)
