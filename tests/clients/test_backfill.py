"""The back-fill against servers that change, stop and vanish."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest
from kserve_peer import ENGINE, VERSION, Peer, codes, serving


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 files that the peer takes for pictures, and 2 that it refuses."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.jpg").write_bytes(b"picture %d" % number)
    (folder / "x.jpg").write_bytes(b"bad")
    (folder / "y.jpg").write_bytes(b"bad too")
    return folder


def arguments(root: Path, pictures: Path, out: Path, *options: str) -> list[str]:
    program = [sys.executable, str(root / "clients" / "backfill.py"), str(pictures)]
    return [*program, "--out", str(out), "--shard-size", "4", *options]


def finish(command: list[str], code: int = 0) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr
    return run.stderr


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


def test_several_servers_fill_one_corpus_and_a_changed_version_starts_another(
    root: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    one, two = Peer(), Peer()
    with serving(one), serving(two):
        servers = ["--url", one.url, "--url", two.url, "--url", "127.0.0.1:1"]
        # Both servers change their model while the run is under way.
        for peer in (one, two):
            peer.stamp = lambda number: f"{VERSION if number < 4 else 'ffffffffffff'} {ENGINE}"
        told = finish(arguments(root, pictures, out, *servers), 2)
        assert "ffffffffffff" in told
        assert "the same command" in told
        begun = sorted((out / VERSION / "shards").glob("*.parquet"))
        kept = {path: path.stat().st_mtime_ns for path in begun}
        for peer in (one, two):
            peer.stamp = lambda number: f"ffffffffffff {ENGINE}"
            peer.config_version = "ffffffffffff"
        finish(arguments(root, pictures, out, *servers))
        for peer in (one, two):
            peer.stamp = lambda number: f"{VERSION} {ENGINE}"
            peer.config_version = VERSION
        finish(arguments(root, pictures, out, *servers))
        # A finished corpus asks for no picture.
        seen = len(one.requests) + len(two.requests)
        finish(arguments(root, pictures, out, *servers))
        assert len(one.requests) + len(two.requests) == seen
    assert one.requests
    assert two.requests
    assert {request.outputs for request in one.requests} == {("code", "version")}
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    for version in (VERSION, "ffffffffffff"):
        rows = [
            row
            for path in sorted((out / version / "shards").glob("*.parquet"))
            for row in pq.read_table(path).to_pylist()
        ]
        assert [row["id"] for row in rows] == [f"{pictures}/{n:02d}.jpg" for n in range(40)]
        assert {row["version"] for row in rows} == {version}
        truth = codes([b"picture %d" % number for number in range(40)])
        assert [row["code"] for row in rows] == [code.tobytes() for code in truth]
        bad = pq.read_table(out / version / "quarantine.parquet").to_pylist()
        assert [row["reason"] for row in bad] == ["not an image", "not an image"]
    report = json.loads((out / VERSION / "report.json").read_text())
    assert (report["rows"], report["bad"], report["shards"]) == (40, 2, 11)


def test_mistakes_end_with_one_sentence(root: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "is unavailable" in finish(arguments(root, pictures, out, "--url", "127.0.0.1:1"), 2)
    peer = Peer()
    with serving(peer):
        options = ("--url", peer.url)
        assert "does not exist" in finish(arguments(root, pictures / "no", out, *options), 2)
        assert not out.exists()
        peer.respond = lambda number, request: (grpc.StatusCode.INTERNAL, "out of order")
        told = finish(arguments(root, pictures, out, *options), 2)
        assert "out of order" in told
        assert "continues from here" in told
        told = finish(arguments(root, pictures, out, "--embeddings", *options), 2)
        assert "begun with other arguments" in told


def test_damaged_shards_are_told_and_done_again_with_the_same_bytes(
    root: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (pictures / "notes.txt").write_text("no picture")
    os.mkfifo(pictures / "z.jpg")
    with serving(Peer()) as peer:
        command = arguments(root, pictures, out, "--url", peer.url)
        told = finish(command)
        assert "passed over: 1 x files whose names are not those of pictures" in told
        assert "3 pictures have no row" in told
        whole = contents(out)
        [pipe] = pq.read_table(out / VERSION / "quarantine.parquet").to_pylist()[2:]
        assert pipe["reason"].startswith("cannot be read (it is not a regular file but a pipe")
        shards = out / VERSION / "shards"
        (shards / "00001.parquet").write_bytes(b"damaged")
        (shards / "00003.parquet").unlink()
        manifest = out / VERSION / "manifest"
        (manifest / "00005.json").write_text("{")
        (manifest / "notes.txt").write_text("stray")
        (shards / f".00007.parquet.{2**22 + 1}.tmp").write_bytes(b"half")
        asked = len(peer.requests)
        told = finish(command)
        assert "2 finished shards are damaged or missing and are done again: 1, 3" in told
        assert "Traceback" not in told
        # Two for the damaged, one for the garbled entry; pictures of four fit into a request.
        assert len(peer.requests) - asked == 3
        (manifest / "notes.txt").unlink()
        assert contents(out) == whole
