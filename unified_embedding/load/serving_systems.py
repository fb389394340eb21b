"""The systems that `make bench` compares: how each is started, called, paused and watched."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np
import psutil

from unified_embedding.checkout import ROOT
from unified_embedding.errors import DeadlineExceeded, ServerError, ServerUnavailable
from unified_embedding.load.served import pictures
from unified_embedding.measure.generator import Request
from unified_embedding.measure.processes import ProcessTree
from unified_embedding.measure.requests import CLOSED_LOOP_TIMEOUT_S, client_of, embed_request
from unified_embedding.serving.local_server import LocalServer, end, free_ports, start

START_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True)
class Embedder:
    """One embedder, built for this machine.

    Attributes:
        name: for tables.
        trunk: its timm name.
        repository: Triton's model repository with its engine.
        precision: OpenVINO's inference precision of that engine.
        dim: width of the embedding.
        slo_p99_ms: objective of its highest Poisson rate.
    """

    name: str
    trunk: str
    repository: Path
    precision: str
    dim: int
    slo_p99_ms: float


class System(ABC):
    """A server program on this machine; it is paused while another one is measured."""

    def __init__(self, name: str, embedder: Embedder, log: Path) -> None:
        self.name = name
        self.embedder = embedder
        self.log = log

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it answers. Raises ServerUnavailable."""

    @abstractmethod
    def calling(self, images: Sequence[bytes], per_request: int = 1) -> Any:
        """An async context manager that gives the request to repeat."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """The root of its processes."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it."""

    @property
    def tree(self) -> ProcessTree:
        """All its processes."""
        return ProcessTree(self.pid)


class Triton(System):
    """Our server."""

    def start(self) -> None:
        """See System.start."""
        self._server: LocalServer = start(self.embedder.repository, self.log)

    @asynccontextmanager
    async def calling(
        self, images: Sequence[bytes], per_request: int = 1
    ) -> AsyncIterator[Request]:
        """Requests for embedding and code."""
        async with client_of(self.url, CLOSED_LOOP_TIMEOUT_S) as client:
            yield embed_request(client, images, per_request)

    @property
    def url(self) -> str:
        """Its gRPC address."""
        return self._server.grpc_url

    @property
    def pid(self) -> int:
        """See System.pid."""
        return self._server.process.pid

    def stop(self) -> None:
        """See System.stop."""
        self._server.stop()


class HttpPeer(System):
    """A Python program that listens at a port."""

    path = ""
    content_type = "application/octet-stream"
    most = 1
    """Pictures that a request may hold."""

    def __init__(self, name: str, embedder: Embedder, log: Path, command: Sequence[str]) -> None:
        """`command` is the program with its arguments, but for --port."""
        super().__init__(name, embedder, log)
        self._command = [sys.executable, *command]
        (self._port,) = free_ports(1)

    def start(self) -> None:
        """See System.start."""
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                [*self._command, "--port", str(self._port)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(ServerUnavailable, ServerError, DeadlineExceeded):
                asyncio.run(self._probe())
                return
            time.sleep(0.3)
        self.stop()
        said = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise ServerUnavailable(f"{self.name} did not start: {''.join(said)} ({self.log})")

    @asynccontextmanager
    async def calling(
        self, images: Sequence[bytes], per_request: int = 1
    ) -> AsyncIterator[Request]:
        """Requests of `per_request` pictures, taken in turn."""
        if per_request > self.most:
            raise ValueError(f"{self.name} takes {self.most} pictures a request at most")
        following = itertools.cycle(images)
        # As many as show every picture once.
        count = -(-len(images) // per_request)
        taken = [[next(following) for _ in range(per_request)] for _ in range(count)]
        bodies = itertools.cycle([self.body(pictures) for pictures in taken])
        # The default connector keeps 100 connections; no limit of ours may shape the load.
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=CLOSED_LOOP_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def request() -> int:
                await self._send(session, next(bodies))
                return per_request

            yield request

    @property
    def pid(self) -> int:
        """See System.pid."""
        return self._process.pid

    def stop(self) -> None:
        """See System.stop."""
        for process in reversed(self._processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
                process.terminate()
        end(self._process, 20)

    @abstractmethod
    def body(self, images: Sequence[bytes]) -> bytes:
        """The body of a request with these pictures."""

    @abstractmethod
    def check(self, answer: bytes) -> None:
        """Raise ServerError unless the answer holds an embedding and a code."""

    async def _send(self, session: aiohttp.ClientSession, body: bytes) -> None:
        url = f"http://127.0.0.1:{self._port}{self.path}"
        headers = {"Content-Type": self.content_type}
        try:
            async with session.post(url, data=body, headers=headers) as response:
                answer = await response.read()
                if response.status != 200:
                    raise ServerError(f"{self.name} answered {response.status}: {answer[:200]!r}")
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self.name} did not answer in time") from error
        except aiohttp.ClientError as error:
            raise ServerUnavailable(f"{self.name} is unavailable: {error}") from error
        self.check(answer)

    def _processes(self) -> list[psutil.Process]:
        if self._process.poll() is not None:
            return []
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    async def _probe(self) -> None:
        async with self.calling(pictures()[:1]) as request:
            await request()


class LitServe(HttpPeer):
    """The same engine and decoder behind LitServe."""

    path = "/predict"
    content_type = "application/json"

    def __init__(self, embedder: Embedder, log: Path, workers: int) -> None:
        arguments = ["--engine", str(embedder.repository / "embedder")]
        arguments += ["--precision", embedder.precision, "--workers", str(workers)]
        name = f"LitServe, {workers} worker{'s' if workers > 1 else ''}"
        super().__init__(
            name, embedder, log, [str(ROOT / "bench" / "peer_litserve.py"), *arguments]
        )

    def body(self, images: Sequence[bytes]) -> bytes:
        """Base64 in JSON."""
        (image,) = images
        return json.dumps({"image": base64.b64encode(image).decode()}).encode()

    def check(self, answer: bytes) -> None:
        """Floats, then the code."""
        dim = self.embedder.dim
        if len(answer) != 4 * dim + dim // 8:
            raise ServerError(f"{self.name} answered {len(answer)} bytes")
        np.frombuffer(answer[: 4 * dim], np.float32)


class TorchEager(HttpPeer):
    """FastAPI and torch eager fp32."""

    path = "/embed"

    def __init__(self, embedder: Embedder, log: Path) -> None:
        command = [str(ROOT / "bench" / "peer_fastapi.py"), "--trunk", embedder.trunk]
        super().__init__("FastAPI + torch fp32", embedder, log, command)

    def body(self, images: Sequence[bytes]) -> bytes:
        """The picture itself."""
        (image,) = images
        return image

    def check(self, answer: bytes) -> None:
        """JSON lists."""
        values = json.loads(answer)
        if len(values["embedding"]) != self.embedder.dim:
            raise ServerError(f"{self.name} answered {len(values['embedding'])} numbers")


class Roofline:
    """Decode, engine and pack in one process; it has no requests, only a measurement."""

    name = "roofline"

    def __init__(self, embedder: Embedder, seconds: float) -> None:
        command = [sys.executable, str(ROOT / "bench" / "roofline.py")]
        command += ["--engine", str(embedder.repository / "embedder")]
        command += ["--precision", embedder.precision, "--seconds", str(seconds)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._line()

    def measure(self) -> dict[str, float]:
        """Images, seconds, CPU seconds and memory of one stretch."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._line())
        return found

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        end(self._process, 20)

    def _line(self) -> str:
        assert self._process.stdout is not None
        if select.select([self._process.stdout], [], [], START_TIMEOUT_S)[0]:
            line = self._process.stdout.readline().strip()
            if line:
                return line
        self._process.kill()
        raise ServerUnavailable("the roofline program ended or hangs")
