"""One real tritonserver for the whole session, on free ports, with an engine built for it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from unified_embedding.errors import SetupError
from unified_embedding.gallery import Gallery
from unified_embedding.serving import model_config
from unified_embedding.serving.local_server import start
from unified_embedding.serving.repository import assemble
from unified_embedding.serving.tritonserver import resolve
from unified_embedding.spec import ENGINE_KEY, EmbedderSpec

MODEL = "models/unified-embedder-lite0"


@dataclass(frozen=True)
class Server:
    """A running server. `pid` is tritonserver's own."""

    grpc_url: str
    http_url: str
    metrics_url: str
    repository: Path
    spec: EmbedderSpec
    engine: str
    pid: int


@pytest.fixture(scope="session")
def gallery(root: Path) -> Gallery:
    return Gallery.load(root / "demo")


@pytest.fixture(scope="session")
def repository(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with an engine that the real build step put there."""
    try:
        resolve([], os.environ)
    except SetupError as error:
        pytest.skip(str(error))
    pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")
    folder = tmp_path_factory.mktemp("server") / "model_repository"
    assemble(root / "model_repository", folder)
    build = subprocess.run(
        [sys.executable, root / "build/engine.py", "--model", root / MODEL, "--repository", folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


@pytest.fixture(scope="session")
def server(
    root: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "log"
    started = start(repository, log)
    spec = EmbedderSpec.load(repository / "embedder" / "1")
    stated = model_config.read(repository / "embedder").parameters
    yield Server(
        grpc_url=started.grpc_url,
        http_url=started.http_url,
        metrics_url=started.metrics_url,
        repository=repository,
        spec=spec,
        engine=stated[ENGINE_KEY].string_value,
        pid=started.server_pid,
    )
    assert started.stop() == 0
    assert "not cleanly" not in log.read_text(errors="replace")


@pytest.fixture(scope="session")
def image(gallery: Gallery) -> list[bytes]:
    """One picture, for the drills that end servers of their own."""
    return [gallery.pictures[0].path.read_bytes()]


@pytest.fixture(scope="session")
def right(server: Server, image: list[bytes]) -> np.ndarray:
    """The code that the session's server gives for that picture."""
    from triton_calls import embed

    return embed(server.grpc_url, image, ("code",))["code"]
