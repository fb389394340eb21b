"""To which names the app answers, and whose pages may send to it: a check of Host and Origin.

What listens on loopback has no login; the browser is the door. A web site can make a visitor's
browser send requests to it (CSRF), or give its own name the address 127.0.0.1 and read the answers
(DNS rebinding). Both show in headers that a site cannot forge: Host names what the browser was
asked to visit, Origin the site that asks (RFC 9110, 7.2; RFC 6454).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from unified_embedding.api.problems import ApiError
from unified_embedding.errors import shown

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_READING: Final = ("GET", "HEAD", "OPTIONS")
# Who watches the process asks by its address, and learns nothing of pictures.
_WATCHED: Final = ("/v1/health/live", "/v1/health/ready", "/metrics")


@dataclass(frozen=True)
class Hosts:
    """The names that the app answers to, beside those of loopback.

    Attributes:
        bound: the address that it listens at.
        names: names by which it is visited, say behind a proxy.
    """

    bound: str = "127.0.0.1"
    names: Sequence[str] = ()


class Guard:
    """Passes a request on when Host is one of ours, and a writing one when Origin is ours too.

    Programs that are no browser send no Origin, and pass.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts, origins: Sequence[str] = ()) -> None:
        """Guard `app`; pages of `origins` (CORS, "*" for all) may send to it too."""
        self._app, self._origins = app, frozenset(origins)
        self._public = frozenset(map(_bare, hosts.names))
        self._names = self._public | {*LOOPBACK, _bare(hosts.bound)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in _WATCHED:
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            problem = self._problem(scope["method"], headers)
            if problem is not None:
                scope["state"]["visit"].code = problem.code
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, method: str, headers: Mapping[bytes, str]) -> ApiError | None:
        host = headers.get(b"host", "")
        if _bare(_without_port(host)) not in self._names:
            return ApiError(
                421,
                f"this server does not answer to the name {shown(host)}; whoever runs it can "
                "allow a name: --host-name NAME",
                "unknown_host",
            )
        origin = headers.get(b"origin")
        if method in _READING or origin is None or self._origins & {origin, "*"}:
            return None
        scheme, mark, place = origin.partition("://")
        same = place.lower() == host.lower() or _bare(_without_port(place)) in self._public
        if not mark or scheme not in ("http", "https") or not same:
            return ApiError(
                403,
                f"pages of {shown(origin)} may not send anything here; whoever runs this server "
                "can allow them: --origin ORIGIN",
                "unknown_origin",
                kind="permission_error",
            )
        return None


def _without_port(host: str) -> str:
    """A host without its port; an IPv6 address keeps its brackets."""
    end = host.rfind(":")
    return host[:end] if end > host.rfind("]") else host


def _bare(host: str) -> str:
    return host.lower().removeprefix("[").removesuffix("]").removesuffix(".")
