"""Drills: a server that is restarted, or dies of a picture, as callers and the back-fill see it.

Calls may take ten times the 30 s that docs/serving.md promises a restart costs at most: a busy
machine is slow. The times are printed.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

import triton_calls as triton
from drills import PATIENCE, RESTARTS, SERVED_S, end, log_of, ready, until
from PIL import Image

from unified_embedding.client import EmbedderClient
from unified_embedding.errors import RequestAborted
from unified_embedding.gallery import Gallery
from unified_embedding.serving.local_server import LocalServer, start

pytestmark = pytest.mark.e2e

TIMEOUT_S = 30
# A decoder with a bug: whatever holds these bytes ends the process that decodes it.
POISON = b"a picture that no decoder survives"
PLANTED = f"""

def _planted(data, *rest, _load=load_pixels):
    if {POISON!r} in data:
        import signal
        os.kill(os.getpid(), signal.SIGSEGV)
    return _load(data, *rest)


load_pixels = _planted
"""


@pytest.fixture(scope="module")
def images(gallery: Gallery) -> list[bytes]:
    return [picture.path.read_bytes() for picture in gallery.pictures[::8][:24]]


@pytest.fixture(scope="module")
def right(server: Any, images: list[bytes]) -> np.ndarray:
    """The code of each picture, as plain tritonclient gets it from another server."""
    return np.concatenate([triton.embed(server.grpc_url, [image])["code"] for image in images])


@pytest.fixture(scope="module")
def own(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LocalServer]]:
    """A server that the tests end; the last of the list is the one that runs."""
    servers = [start(repository, tmp_path_factory.mktemp("own") / "server.log")]
    yield servers
    end(servers[-1])


@pytest.fixture(scope="module")
def fragile(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server whose `preprocess` dies of a poison picture."""
    folder = tmp_path_factory.mktemp("fragile") / "model_repository"
    shutil.copytree(repository, folder)
    model = folder / "preprocess" / "1" / "model.py"
    model.write_text(model.read_text() + PLANTED)
    started = start(folder, folder.parent / "server.log")
    yield started
    end(started)


def started_again(server: LocalServer) -> LocalServer:
    """The same command on the same ports, as an orchestrator gives it."""
    with server.log.open("ab") as log:
        process = subprocess.Popen(
            server.process.args, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    again = replace(server, process=process)
    until(lambda: ready(again), SERVED_S, "not ready")
    return again


def restarts(server: LocalServer) -> int:
    """How often its launcher has started tritonserver again."""
    return log_of(server).count(RESTARTS)


def term(servers: list[LocalServer]) -> None:
    assert servers[-1].stop() == 0
    servers.append(started_again(servers[-1]))


def kill(servers: list[LocalServer]) -> None:
    servers[-1].process.kill()
    servers[-1].process.wait()
    servers.append(started_again(servers[-1]))


def kill_under_the_launcher(servers: list[LocalServer]) -> None:
    before = restarts(servers[-1])
    os.kill(servers[-1].server_pid, signal.SIGKILL)
    until(lambda: restarts(servers[-1]) > before, SERVED_S, "the launcher noticed nothing")
    until(lambda: ready(servers[-1]), SERVED_S, "not ready")


class Callers:
    """Callers of one shared client that embed lists until they are told to stop."""

    def __init__(self, url: str, images: Sequence[bytes], right: np.ndarray) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self.wrong = 0
        self.slowest = 0.0
        self._images, self._right = images, right
        self._client = EmbedderClient(url, timeout=PATIENCE * TIMEOUT_S)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(6)

    def __enter__(self) -> "Callers":
        self._calls = [self._pool.submit(self._ask, first) for first in range(0, 24, 4)]
        until(lambda: self.answered > 12, SERVED_S, "the callers were not answered")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for call in self._calls:
            call.result()
        self._client.close()
        self._pool.shutdown()
        print(
            f"\n  {self.answered} calls answered, {len(self.failed)} failed; the slowest took "
            f"{self.slowest:.1f} s"
        )

    def go_on(self) -> None:
        """Wait until each of them was answered again."""
        target = self.answered + 12
        until(lambda: self.answered > target, SERVED_S, "not answered again")

    def _ask(self, first: int) -> None:
        part = slice(first, first + 4)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                code = self._client.embed(self._images[part]).code
            except Exception as error:
                with self._lock:
                    self.failed.append(repr(error))
                time.sleep(0.05)
                continue
            with self._lock:
                self.answered += 1
                self.wrong += not np.array_equal(code, self._right[part])
                self.slowest = max(self.slowest, time.monotonic() - began)


@pytest.mark.parametrize("restart", [term, kill, kill_under_the_launcher])
def test_a_restart_costs_no_call(
    own: list[LocalServer],
    restart: Callable[[list[LocalServer]], None],
    images: list[bytes],
    right: np.ndarray,
) -> None:
    with Callers(own[-1].grpc_url, images, right) as callers:
        restart(own)
        callers.go_on()
    assert callers.failed == []
    assert callers.wrong == 0


def test_a_poison_picture_costs_itself_and_two_restarts(
    fragile: LocalServer, images: list[bytes], right: np.ndarray
) -> None:
    before = restarts(fragile)
    poisoned = list(images[:16])
    poisoned[5] += POISON
    with (
        Callers(fragile.grpc_url, images, right) as callers,
        EmbedderClient(fragile.grpc_url, timeout=PATIENCE * 60) as client,
    ):
        answer = client.embed_each(poisoned)
        callers.go_on()
    assert {row: type(error) for row, error in answer.errors.items()} == {5: RequestAborted}
    assert answer.rows == (*range(5), *range(6, 16))
    assert np.array_equal(answer.embedded.code, right[list(answer.rows)])
    assert 1 <= restarts(fragile) - before <= 2
    assert callers.wrong == 0


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 64)).save(file, "PNG")
    return file.getvalue()


def backfill(root: Path, url: str, folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    program = [
        sys.executable,
        "clients/backfill.py",
        str(folder),
        "--out",
        str(folder.parent / "out"),
    ]
    # Ten times the 60 s of the promise.
    options = ["--url", url, "--shard-size", "64", "--patience", "600", "--timeout", "300"]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [*program, *options], cwd=root, stdout=stream, stderr=subprocess.STDOUT
        )


def vectors_of(out: Path) -> dict[str, bytes]:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [
        row
        for path in sorted(out.glob("*/shards/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert len({row["id"] for row in rows}) == len(rows)
    return {Path(row["id"]).name: row["code"] for row in rows}


def codes_of(url: str, pictures: dict[str, bytes]) -> dict[str, bytes]:
    with EmbedderClient(url, timeout=PATIENCE * 60) as client:
        code = client.embed(list(pictures.values())).code
    assert code is not None
    return {name: row.tobytes() for name, row in zip(pictures, code, strict=True)}


def test_a_backfill_goes_on_through_a_restart(
    root: Path, own: list[LocalServer], tmp_path: Path
) -> None:
    folder, out, log = tmp_path / "pictures", tmp_path / "out", tmp_path / "backfill.log"
    folder.mkdir()
    pictures = {f"{number:04d}.png": picture(number) for number in range(320)}
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    right = codes_of(own[-1].grpc_url, pictures)
    with backfill(root, own[-1].grpc_url, folder, log) as run:
        until(
            lambda: run.poll() is not None or list(out.glob("*/manifest/0*.json")),
            60,
            "no shard was finished",
        )
        assert run.poll() is None, log.read_text()
        term(own)
        kill(own)
        assert run.wait(600) == 0, log.read_text()
    assert vectors_of(out) == right


def test_a_backfill_quarantines_the_poison_picture(
    root: Path, fragile: LocalServer, tmp_path: Path
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    folder, out, log = tmp_path / "pictures", tmp_path / "out", tmp_path / "backfill.log"
    folder.mkdir()
    pictures = {f"{number:04d}.png": picture(number) for number in range(150)}
    right = codes_of(fragile.grpc_url, pictures)
    pictures["0077.png"] += POISON
    del right["0077.png"]
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    before = restarts(fragile)
    with backfill(root, fragile.grpc_url, folder, log) as run:
        assert run.wait(600) == 0, log.read_text()
    assert vectors_of(out) == right
    (bad,) = pq.read_table(next(out.glob("*/quarantine.parquet"))).to_pylist()
    assert Path(bad["id"]).name == "0077.png"
    assert "died twice while it had this picture" in bad["reason"]
    assert 1 <= restarts(fragile) - before <= 2
