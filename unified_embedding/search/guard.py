"""Who may talk to a page on a machine's own network: a check of Host and Origin for ASGI.

A page on loopback has no login; the browser is the door. A web site can make a visitor's browser
send requests to it (CSRF), or give its own name the address 127.0.0.1 and read the answers (DNS
rebinding). Both show in headers that a site cannot forge: Host names what the browser was asked
to visit, Origin the site that asks (RFC 9110, 7.2; RFC 6454).
"""

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from unified_embedding.errors import shown

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_READING: Final = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Passes a request on when Host is one of `names`, and a writing one when Origin is ours too.

    Programs that are no browser send no Origin, and pass.
    """

    def __init__(self, app: App, names: Iterable[str], bound: str) -> None:
        """Guard `app`, which listens at the address `bound`; `names` are further names of it."""
        self._app = app
        self._public = frozenset(_bare(name) for name in names)
        self._names = self._public | {*LOOPBACK, _bare(bound)}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
            return
        status, sentence = problem
        body = json.dumps({"error": sentence}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _problem(self, scope: Message) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if _bare(_without_port(host)) not in self._names:
            return 421, (
                f"This page does not answer to the name {shown(host)}. "
                "Whoever runs it can allow a name: --host-name NAME."
            )
        origin = headers.get(b"origin")
        if scope["method"] in _READING or origin is None:
            return None
        scheme, mark, place = origin.partition("://")
        same = place.lower() == host.lower() or _bare(_without_port(place)) in self._public
        if not mark or scheme not in ("http", "https") or not same:
            return 403, f"Photos are taken from this page only, not from {shown(origin)}."
        return None


def _without_port(host: str) -> str:
    """A host without its port; an IPv6 address keeps its brackets."""
    end = host.rfind(":")
    return host[:end] if end > host.rfind("]") else host


def _bare(host: str) -> str:
    return host.lower().removeprefix("[").removesuffix("]").removesuffix(".")
