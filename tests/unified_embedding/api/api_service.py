"""The API on a real port, in front of a peer whose vectors are known."""

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn

pytest.importorskip("msgspec", reason="the extra `api` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `api` is not installed")

from unified_embedding.api.app import Api, Settings
from unified_embedding.api.log import Book

HANG = 120.0


def url(image: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


@dataclass
class Answer:
    """An answer as it came over HTTP; `said` is its JSON, or its bytes."""

    status: int
    headers: dict[str, str]
    said: Any

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.said) == {"error"}, self.said
        assert {"message", "type", "param", "code"} <= set(self.said["error"])
        return dict(self.said["error"])


@dataclass
class Service:
    """A running API."""

    api: Api
    address: tuple[str, int]
    lines: io.StringIO

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = ""
    ) -> Answer:
        """GET, or POST a body: JSON unless it is bytes already."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        with closing(http.client.HTTPConnection(*self.address, timeout=HANG)) as connection:
            connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
            answer = connection.getresponse()
            data = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return Answer(answer.status, found, json.loads(data) if is_json else data)

    def embed(self, *images: Any, **fields: Any) -> Answer:
        return self.ask("/v1/embeddings", {"input": list(images), **fields})

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]


@contextmanager
def running(settings: Settings, **options: Any) -> Iterator[Service]:
    lines = io.StringIO()
    api = Api(settings, book=Book(lines), **options)
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Service(api, server.servers[0].sockets[0].getsockname(), lines)
    finally:
        server.should_exit = True
        thread.join(HANG)
