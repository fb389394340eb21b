"""`make image-check`: the CPU image, built for real, serves as uid 10001 on a read-only root.

buildah builds deploy/Dockerfile.cpu on a Debian that mmdebstrap makes, since no image registry is
needed for that. Then the image's root is mounted read-only and its command run in it, as its own
user, without privileges, with nothing but /tmp, /run/unified-embedding and /dev/shm to write to.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified_embedding.client import EmbedderClient
from unified_embedding.gallery import Gallery
from unified_embedding.serving.local_server import child, free_ports, start
from unified_embedding.serving.repository import add_engine, assemble, expect, fit, static_models
from unified_embedding.spec import EmbedderSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("RUN_SLOW") != "1", reason="takes minutes; set RUN_SLOW=1"),
]
BASE, IMAGE = "localhost/unified-embedding-base:bookworm", "localhost/unified-embedding:check"
ROOTS = "/etc/ssl/certs/ca-certificates.crt"
NEEDED = ("buildah", "mmdebstrap", "unshare", "setpriv")
# What the container may write, as `docker run --read-only --tmpfs ... --shm-size` says it.
IN_MEMORY = {"tmp": "256m", "run/unified-embedding": "2g", "dev/shm": "1g"}
# Mounts are this process's alone, and go with it. $1 is the root, $2... the image's command.
ENTER = """
set -eu
root=$1 directory=$2 user=$3
shift 3
mount --rbind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755,size=1m dev "$root/dev"
mkdir "$root/dev/shm"
for name in null zero random urandom; do
    : > "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mount -t tmpfs -o mode=1777,size=SHM shm "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=TMP tmp "$root/tmp"
mount -t tmpfs -o mode=1777,size=RUN run "$root/run/unified-embedding"
cd "$root"
exec chroot --userspec="$user" --groups= . env -i "$@"
"""


@dataclass(frozen=True)
class Built:
    """An image and its root, mounted. `config` is the OCI configuration."""

    root: Path
    config: dict[str, Any]

    def command(self, words: Sequence[str], environment: Sequence[str] = ()) -> list[str]:
        """Run `words` in it, hardened."""
        script = ENTER
        for name, place in {"SHM": "dev/shm", "TMP": "tmp", "RUN": "run/unified-embedding"}.items():
            script = script.replace(f"size={name}", f"size={IN_MEMORY[place]}")
        return [
            "unshare", "--mount", "--propagation=private",
            "setpriv", "--no-new-privs", "sh", "-c", script, "sh",
            str(self.root), self.config.get("WorkingDir") or "/", self.config["User"],
            *self.config["Env"], *environment, *words,
        ]  # fmt: skip


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    for program in NEEDED:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: apt-get install buildah mmdebstrap")
    if os.geteuid() != 0:
        pytest.skip("building and mounting an image is root's")
    if BASE not in run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        archive = tmp_path_factory.mktemp("base") / "base.tar"
        run("mmdebstrap", "--variant=minbase", "bookworm", archive)
        container = run("buildah", "from", "scratch")
        run("buildah", "add", "--quiet", container, archive, "/")
        run("buildah", "config", "--env", f"PIP_CERT={ROOTS}", container)
        run("buildah", "commit", "--quiet", "--rm", container, BASE)
    run(
        "buildah", "build", "--isolation", "chroot", "--format", "docker", "--layers",
        # What this machine trusts: its packages may come through a proxy with roots of its own.
        "--volume", f"{ROOTS}:{ROOTS}:ro", "--build-arg", f"BASE={BASE}",
        "--file", root / "deploy/Dockerfile.cpu", "--tag", IMAGE, root,
    )  # fmt: skip
    container = run("buildah", "from", "--pull-never", IMAGE)
    try:
        inspected = json.loads(run("buildah", "inspect", "--type", "image", IMAGE))
        yield Built(Path(run("buildah", "mount", container)), inspected["Docker"]["config"])
    finally:
        run("buildah", "rm", container)


@pytest.fixture(scope="module")
def served(image: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gRPC address of the image's own command."""
    http, grpc, metrics = free_ports(3)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    loopback = [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
    # The last of two flags counts; a test opens nothing beyond this machine.
    words = [word for word in image.config["Cmd"] if not word.endswith("-address=0.0.0.0")]
    log = tmp_path_factory.mktemp("image") / "log"
    with log.open("wb") as file:
        server = child(
            image.command([*words, *loopback, *ports]), stdout=file, stderr=subprocess.STDOUT
        )
        with server as process:
            _wait_until_ready(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
            yield f"127.0.0.1:{grpc}"
    assert "not cleanly" not in log.read_text(errors="replace")


def _wait_until_ready(process: "subprocess.Popen[Any]", url: str, log: Path) -> None:
    end = time.monotonic() + 600
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        said = log.read_text(errors="replace")[-3000:]
        assert process.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.5)


def test_the_configuration_is_hardened(image: Built) -> None:
    assert image.config["User"] == "10001:10001"
    assert image.config["Healthcheck"]["Test"][:3] == ["CMD", "unified-embedding", "status"]
    components = json.loads((image.root / "opt/venv/sbom.cdx.json").read_text())
    assert components["bomFormat"] == "CycloneDX"
    named = {item["name"] for item in components["components"]}
    assert {"unified-embedding", "openvino", "nvidia-pytriton", "numpy"} <= named
    packages = (image.root / "opt/venv/lib/python3.11/site-packages").glob("*.dist-info")
    assert len(named) == len(list(packages))


def test_nobody_can_write_the_image(image: Built) -> None:
    attempt = (
        "for f in / /opt/venv /usr/bin /etc; do touch $f/x 2>/dev/null && echo $f; done; id -u"
    )
    said = run(*image.command(["sh", "-c", attempt]))
    assert said == "10001"


def test_it_answers_byte_for_byte_as_the_server_outside(
    root: Path, image: Built, served: str, tmp_path: Path
) -> None:
    engine = image.root / "opt/unified-embedding/engine"
    version = EmbedderSpec.load(root / "models/unified-embedder-lite0").version
    expect(engine, f"{version} openvino-fp32")
    repository = tmp_path / "model_repository"
    assemble(static_models(), repository)
    add_engine(engine, repository)
    fit(repository, EmbedderSpec.load(engine / "1").dim)
    outside = start(repository, tmp_path / "log", timeout=600)
    try:
        pictures = [picture.path.read_bytes() for picture in Gallery.load(root / "demo").pictures]
        with (
            EmbedderClient(served, timeout=120) as inside,
            EmbedderClient(outside.grpc_url, timeout=120) as other,
        ):
            for first in (0, 16):
                batch = pictures[first : first + 16]
                ours, theirs = inside.embed(batch), other.embed(batch)
                assert (ours.version, ours.engine) == (theirs.version, theirs.engine)
                assert ours.embedding is not None
                assert theirs.embedding is not None
                assert ours.embedding.tobytes() == theirs.embedding.tobytes()
                assert np.array_equal(ours.code, theirs.code)
    finally:
        assert outside.stop() == 0


def test_its_health_check_passes_inside(image: Built, served: str) -> None:
    words = image.config["Healthcheck"]["Test"][1:]
    # Under a load of tests, 20 s may be short.
    words[words.index("--timeout") + 1] = "300"
    run(*image.command(words, [f"UNIFIED_EMBEDDING_URL={served}"]))
