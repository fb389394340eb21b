"""The embedding servers behind the API: which one is asked, and whether any can be."""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from unified_embedding.api.problems import ApiError, of_client
from unified_embedding.client import (
    AsyncEmbedderClient,
    Connection,
    Embedded,
    EmbeddedEach,
    Retry,
    ServerInfo,
)
from unified_embedding.client._base import plain_picture
from unified_embedding.client._results import join
from unified_embedding.errors import (
    ClientError,
    RequestAborted,
    ServerDied,
    ServerUnavailable,
    VersionMismatch,
)
from unified_embedding.image import Box
from unified_embedding.origin import Origin

FRESH_SECONDS: Final = 5.0
"""How long an embedded picture proves that a server is ready."""
_PROBE_SECONDS: Final = 3.0
_REST_SECONDS: Final = 1.0
# A supervised server is back within 20 s; one that never answered is probably not there.
_RESTART_SECONDS: Final = 25.0
_CONTACT_SECONDS: Final = 2.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0


Fits = Callable[[Origin], bool]
"""Whether vectors from there are of the version that is asked for."""


@dataclass
class _Server:
    client: AsyncEmbedderClient
    info: ServerInfo | None = None
    version: str = ""
    in_work: int = 0
    embedded_at: float = float("-inf")
    away_until: float = 0.0
    met: bool = False
    probing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def fits(self, fits: "Fits | None") -> bool:
        return fits is None or self.info is None or fits(self.info.origin)


class _Task:
    """The pictures of one request, and what became of them so far."""

    def __init__(
        self,
        images: Sequence[bytes],
        crops: Sequence[Box | None],
        outputs: Collection[str],
        end: float,
    ) -> None:
        self._images, self._crops, self._outputs, self.end = images, crops, outputs, end
        self._waiting = list(range(len(images)))
        self._suspects: dict[int, ServerDied] = {}
        self._parts: list[tuple[tuple[int, ...], Embedded]] = []
        self._nothing: Embedded | None = None
        self._errors: dict[int, ClientError] = {}

    def left(self) -> float:
        """Seconds until the caller needs the answer."""
        return max(0.001, self.end - time.monotonic())

    def next_rows(self) -> list[int]:
        """What to send next: everything that nothing is known against, then suspects one by one."""
        innocent = [row for row in self._waiting if row not in self._suspects]
        return innocent or self._waiting[:1]

    def is_suspect(self, rows: Sequence[int]) -> bool:
        return rows[0] in self._suspects

    async def send(self, client: AsyncEmbedderClient, rows: Sequence[int]) -> EmbeddedEach:
        crops = [self._crops[row] for row in rows]
        return await client.embed_each(
            [self._images[row] for row in rows],
            crops=crops if any(crops) else None,
            outputs=self._outputs,
            timeout=self.left(),
        )

    def fail(self, rows: Sequence[int], error: ClientError) -> None:
        self._errors.update(dict.fromkeys(rows, error))
        self._waiting = [row for row in self._waiting if row not in self._errors]

    def note(self, rows: Sequence[int], found: EmbeddedEach) -> ServerUnavailable | None:
        """Keep what was answered. Returns why some rows have to be sent again."""
        again: ServerUnavailable | None = None
        for place, error in found.errors.items():
            row = rows[place]
            if isinstance(error, ServerDied) and error.was_well:
                if row in self._suspects:
                    sentence = f"the server died twice while it had this picture ({error})"
                    self._errors[row] = RequestAborted(sentence, (row,))
                else:
                    self._suspects[row] = error
                    again = error
            elif isinstance(error, ServerUnavailable):
                again = error
            else:
                self._errors[row] = error
        if found.rows:
            self._parts.append((tuple(rows[place] for place in found.rows), found.embedded))
        self._nothing = found.embedded
        done = {row for part, _ in self._parts for row in part} | set(self._errors)
        self._waiting = [row for row in self._waiting if row not in done]
        return again

    def collected(self, last: ClientError) -> EmbeddedEach:
        """One result, in the caller's order; what is still waiting failed with `last`.

        Raises:
            ClientError: `last`, when nothing was answered; VersionMismatch.
        """
        self.fail(self._waiting, last)
        if self._nothing is None:
            raise next(iter(self._errors.values()))
        if not self._parts:
            return EmbeddedEach(self._nothing, (), dict(sorted(self._errors.items())))
        if len(self._parts) == 1:
            ((done, answer),) = self._parts
            return EmbeddedEach(answer, done, dict(sorted(self._errors.items())))
        answer = join([part for _, part in self._parts])
        rows = [row for part, _ in self._parts for row in part]
        order = np.argsort(rows)
        answer = replace(
            answer,
            embedding=None if answer.embedding is None else answer.embedding[order],
            code=None if answer.code is None else answer.code[order],
        )
        return EmbeddedEach(answer, tuple(sorted(rows)), dict(sorted(self._errors.items())))


class Servers:
    """One or several gRPC servers of the same embedder.

    A request goes to the one that has the fewest pictures in work. One that cannot be reached is
    left alone for a second, and the request is repeated at another (an embedding is idempotent)
    or, when all are away, waits for a restart.
    """

    def __init__(
        self,
        urls: Sequence[str],
        connection: Connection,
        metadata: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Connect to the servers at `urls`; `metadata` tells what further goes with each call."""
        tls, fixed = connection.tls, connection.metadata
        clients = [
            AsyncEmbedderClient(
                url,
                retry=Retry(attempts=1),
                max_inflight=256,
                tls=tls,
                metadata=lambda: {**fixed, **metadata()},
            )
            for url in urls
        ]
        self._servers = [_Server(client) for client in clients]

    async def embed(
        self,
        images: Sequence[bytes],
        crops: Sequence[Box | None],
        outputs: Collection[str],
        timeout: float,
        version: str | None = None,
        to_search: bool = False,
    ) -> EmbeddedEach:
        """Embed what can be embedded; a picture that cannot has its error beside the others' rows.

        A picture that was in flight when a server's process died is sent once more, alone; when a
        process dies again it is given up (RequestAborted). With `version` only vectors of it come
        back, or with `to_search` of any embedder that may search codes of it.

        Raises:
            ApiError: nothing was embedded because no server answers (503) or none serves
                `version` (404), or servers answered with several versions (503).
        """
        task = _Task(images, crops, outputs, time.monotonic() + timeout)
        end = min(task.end, time.monotonic() + self._patience())
        last: ClientError = ServerUnavailable("no embedding server can be reached")
        pause = _FIRST_PAUSE
        fits = None if version is None else _fits(version, to_search)
        while rows := task.next_rows():
            server = await self._next(version, fits, task.left())
            if server is None:
                raise _no_version(version or "", await self.infos(), to_search)
            problem = await self._send(server, task, rows, fits)
            if problem is not None:
                last = problem
                if time.monotonic() + pause > end:
                    break
                if all(other.away_until > time.monotonic() for other in self._servers):
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            return task.collected(last)
        except ClientError as error:
            raise of_client(error) from error

    def _patience(self) -> float:
        """Seconds to wait for a server: one that has answered before is being restarted."""
        return _RESTART_SECONDS if any(server.met for server in self._servers) else _CONTACT_SECONDS

    async def _send(
        self, server: _Server, task: "_Task", rows: Sequence[int], fits: Fits | None
    ) -> ClientError | None:
        """One attempt; what it brought stands in the task. Returns why rows are still to do."""
        server.in_work += len(rows)
        try:
            if task.is_suspect(rows) and not await server.client.is_ready(timeout=task.left()):
                return self._lost(server, ServerUnavailable("the server is not ready"))
            found = await task.send(server.client, rows)
        except ServerUnavailable as error:
            return self._lost(server, error)
        except ClientError as error:
            task.fail(rows, error)
            return None
        finally:
            server.in_work -= len(rows)
        if found.rows and fits is not None and not fits(found.embedded.origin):
            server.info = None  # It changed its model.
            return VersionMismatch(f"the server answers with version {found.embedded.version}")
        problem = task.note(rows, found)
        if found.rows:
            server.met, server.embedded_at = True, time.monotonic()
            server.version = found.embedded.version
            if server.info is not None and server.info.version != found.embedded.version:
                server.info = None
        return None if problem is None else self._lost(server, problem)

    async def infos(self) -> list[ServerInfo]:
        """What the servers that can be reached say of themselves. Raises ApiError if none can."""
        asked = await asyncio.gather(
            *(self._info(server, _PROBE_SECONDS) for server in self._servers),
            return_exceptions=True,
        )
        found = [info for info in asked if isinstance(info, ServerInfo)]
        if not found:
            error = next(error for error in asked if isinstance(error, ClientError))
            raise of_client(error) from error
        return found

    async def is_ready(self) -> bool:
        """Whether a picture was embedded a moment ago; embeds one itself when none was."""
        now = time.monotonic()
        if any(now - server.embedded_at < FRESH_SECONDS for server in self._servers):
            return True
        return any(await asyncio.gather(*(self._fresh(server) for server in self._servers)))

    async def close(self) -> None:
        """Close the connections."""
        for server in self._servers:
            await server.client.close()

    async def _fresh(self, server: _Server) -> bool:
        async with server.probing:
            if time.monotonic() - server.embedded_at < FRESH_SECONDS:
                return True
            try:
                await server.client.embed(
                    [plain_picture()], outputs=("code",), timeout=_PROBE_SECONDS
                )
            except ClientError:
                return False
            server.embedded_at = time.monotonic()
            return True

    async def _next(self, version: str | None, fits: Fits | None, left: float) -> _Server | None:
        """The server to ask; None when those that answer serve other versions."""
        there = self._servers
        if fits is not None:
            for server in there:
                if server.info is None:
                    await self._meet(server, min(left, _PROBE_SECONDS))
            there = [server for server in there if server.fits(fits)]
        now = time.monotonic()

        def worth(one: _Server) -> tuple[bool, bool, int]:
            exact = version is None or (one.info is not None and one.info.version == version)
            return one.away_until > now, not exact, one.in_work

        return min(there, key=worth, default=None)

    async def serves(self, version: str) -> bool:
        """Whether one of the servers is of a version, as far as they could be asked."""
        for server in self._servers:
            if not server.version:
                await self._meet(server, _PROBE_SECONDS)
        return any(server.version == version for server in self._servers)

    async def _meet(self, server: _Server, timeout: float) -> None:
        """Ask a server that is not resting what it serves."""
        if server.away_until <= time.monotonic():
            try:
                await self._info(server, timeout)
            except ClientError as error:
                self._lost(server, error)

    async def _info(self, server: _Server, timeout: float) -> ServerInfo:
        server.info = await server.client.info(timeout=timeout)
        server.met, server.version = True, server.info.version
        return server.info

    def _lost(self, server: _Server, error: ClientError) -> ClientError:
        server.away_until = time.monotonic() + _REST_SECONDS
        server.embedded_at = float("-inf")
        server.info = None
        return error


def _fits(version: str, to_search: bool) -> Fits:
    def same(origin: Origin) -> bool:
        return origin.version == version

    def may_search(origin: Origin) -> bool:
        return origin.may_search(version)

    return may_search if to_search else same


def _no_version(version: str, infos: Sequence[ServerInfo], to_search: bool) -> ApiError:
    served = ", ".join(sorted({info.version for info in infos}))
    if to_search:
        return ApiError(
            409,
            f"the index holds codes of version {version}, and served is {served}: they cannot be "
            "compared; serve the index's version, or back-fill the corpus with the other",
            "version_mismatch",
            "version",
        )
    return ApiError(
        404,
        f"embedder version {version[:80]!r} is not served here, {served} is: their vectors must "
        "not be mixed",
        "model_not_found",
        "model",
    )
