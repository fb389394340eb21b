"""The back-fill on the real server: killed and resumed, then indexed and searched."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytestmark = pytest.mark.e2e
for package in ("pyarrow", "faiss"):
    pytest.importorskip(package, reason="the extra `search` is not installed")

PATIENCE = 240.0


def command(root: Path, server: Any, out: Path, inputs: Sequence[str]) -> list[str]:
    program = [sys.executable, str(root / "clients" / "backfill.py")]
    return [*program, *inputs, "--out", str(out), "--url", server.grpc_url]


def finished(out: Path) -> set[Path]:
    return set(out.glob("*/manifest/*.json"))


def kill_after_new_shards(arguments: list[str], folder: Path, out: Path, new: int) -> None:
    """Start a run and SIGKILL it once the manifest names `new` more shards than before."""
    before = len(finished(out))
    with (out.parent / "log").open("wb") as log:
        run = subprocess.Popen(arguments, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE
        while len(finished(out)) < before + new:
            assert run.poll() is None, (out.parent / "log").read_text()
            assert time.monotonic() < deadline, "no new shard in time"
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()


def state(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every file of the finished shards."""
    names = {path.stem for path in finished(out)}
    files = [path for path in out.glob("*/*/*") if path.stem in names and path.name[0] != "."]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def contents(out: Path) -> dict[str, str]:
    """Digest of every file but the report, which holds times, by its place in the output."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "report.json" and not path.name.endswith(".tmp")
    }


def table(out: Path, name: str) -> list[dict[str, object]]:
    files = sorted(out.glob(name))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def check_killed_and_resumed(
    root: Path, server: Any, folder: Path, planted: set[str], options: Sequence[str], rate: int
) -> Path:
    """Kill a run over folder/pictures twice, resume it, compare with an undisturbed one."""
    plain, broken = folder / "plain", folder / "broken"
    pictures = {str(path.relative_to(folder)) for path in (folder / "pictures").rglob("*.*g")}
    inputs = ["pictures", *options]
    quiet = {"cwd": folder, "check": True, "capture_output": True}
    subprocess.run(command(root, server, plain, inputs), **quiet)  # type: ignore[call-overload]
    total = len(finished(plain))
    paced = [*command(root, server, broken, inputs), "--max-rate", str(rate)]
    kept: dict[str, tuple[int, int]] = {}
    for _ in range(2):
        kill_after_new_shards(paced, folder, broken, new=2)
        assert len(finished(broken)) < total, "killed too late to show anything"
        now = state(broken)
        assert kept.items() <= now.items()
        kept = now
    subprocess.run(command(root, server, broken, inputs), **quiet)  # type: ignore[call-overload]
    assert kept.items() <= state(broken).items()
    assert contents(broken) == contents(plain)
    rows = table(broken, "*/shards/*.parquet")
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids)
    assert set(ids) == pictures - planted
    assert {row["version"] for row in rows} == {server.spec.version}
    assert {row["engine"] for row in rows} == {server.engine}
    bad = table(broken, "*/quarantine.parquet")
    assert {row["id"] for row in bad} == planted
    assert all(row["reason"] for row in bad)
    return broken


def plant(folder: Path) -> set[str]:
    """Corrupt files among the pictures; returns their ids."""
    good = next(folder.rglob("*.jpg")).read_bytes()
    contents = {"text.jpg": b"hello", "cut.jpg": good[: len(good) // 2], "empty.png": b""}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {f"pictures/{name}" for name in contents}


def test_the_demo_killed_twice_ends_like_an_undisturbed_run(
    root: Path, server: Any, tmp_path: Path
) -> None:
    shutil.copytree(root / "demo", tmp_path / "pictures")
    planted = plant(tmp_path / "pictures")
    out = check_killed_and_resumed(
        root, server, tmp_path, planted, ["--shard-size", "16", "--embeddings"], rate=40
    )
    # A server-side truth that does not pass through the back-fill's code.
    rows = table(out, "*/shards/*.parquet")
    embeddings = np.array([row["embedding"] for row in rows], dtype=np.float32)
    codes = np.array([list(row["code"]) for row in rows], dtype=np.uint8)  # type: ignore[call-overload]
    # float16 keeps the sign of all but the tiniest values.
    assert (np.packbits(embeddings > 0, axis=1) == codes).mean() > 0.999


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RUN_SLOW") != "1", reason="takes minutes: RUN_SLOW=1")
def test_twenty_thousand_pictures_killed_twice(root: Path, server: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(20_000):
        folder = tmp_path / "pictures" / f"{number // 1000:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((96, 96)).save(file, "JPEG")
        (folder / f"{number:05d}.jpg").write_bytes(file.getvalue())
    planted = plant(tmp_path / "pictures")
    check_killed_and_resumed(root, server, tmp_path, planted, [], rate=300)
