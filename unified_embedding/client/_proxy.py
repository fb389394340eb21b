"""Which proxy gRPC connects through, so that an error can name it.

gRPC reads the environment as its documentation says (doc/environment_variables.md): a proxy of
an http:// address, for every target that the list of exceptions does not name, loopback too.
"""

import ipaddress
import os
from typing import Final
from urllib.parse import urlsplit

_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS: Final = ("no_grpc_proxy", "no_proxy")


def advice(url: str) -> str:
    """What to add to an error of a connection to `url`; empty when it uses no proxy."""
    variable = next((name for name in _PROXIES if os.environ.get(name)), None)
    host = _host(url)
    if variable is None or _excepted(host):
        return ""
    try:
        proxy = urlsplit(os.environ[variable])
        place = f"{proxy.hostname}:{proxy.port or 80}"
    except ValueError:
        return ""
    if proxy.scheme != "http" or url.startswith(("unix:", "unix-abstract:")):
        return ""
    return (
        f"; the connection goes through the proxy {place}, which the environment variable "
        f"{variable} names: to connect directly, set no_proxy={host}"
    )


def _host(url: str) -> str:
    return urlsplit(f"//{url.rpartition('/')[2]}").hostname or url


def _excepted(host: str) -> bool:
    listed = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    return any(_matches(host, entry.strip()) for entry in listed.split(",") if entry.strip())


def _matches(host: str, entry: str) -> bool:
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
