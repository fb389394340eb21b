"""Saving, opening, damage, and two writers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.errors import CodeIndexError
from unified_embedding.index import Batch, CodeIndex, Header, Origin, Settings
from unified_embedding.index.checksums import File


def batch(count: int = 50, width: int = 4) -> Batch:
    codes = np.random.default_rng(0).integers(0, 256, (count, width), dtype=np.uint8)
    return Batch([f"r{row}" for row in range(count)], codes, {"row": list(range(count))})


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize(
    "lost", ["codes.u8", "metadata.arrow", "id-order.i64", "accelerator.faiss"]
)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damage_is_named(tmp_path: Path, origin: Origin, kind: str, lost: str, damage: str) -> None:
    settings = Settings(kind=kind)  # type: ignore[arg-type]
    CodeIndex.build(tmp_path / "i", [batch()], origin, 32, settings=settings)
    path = tmp_path / "i" / f"000001-{lost}"
    if (kind, lost) == ("flat", "accelerator.faiss"):
        assert not path.exists()
        return
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CodeIndexError, match=f"{lost}.*build the index again"):
        CodeIndex.open(tmp_path / "i")


def test_a_folder_that_is_no_index_says_so(tmp_path: Path, origin: Origin) -> None:
    with pytest.raises(CodeIndexError, match="is not a code index"):
        CodeIndex.open(tmp_path / "absent")
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(CodeIndexError, match="not empty"):
        CodeIndex.create(tmp_path, origin, 8)
    with pytest.raises(CodeIndexError, match=r"holds other things \(holiday.jpg\)"):
        CodeIndex.build(tmp_path, [batch()], origin, 32)
    assert (tmp_path / "holiday.jpg").exists()


def test_a_header_of_another_format_is_refused(tmp_path: Path, origin: Origin) -> None:
    CodeIndex.build(tmp_path / "i", [batch()], origin, 32)
    path = tmp_path / "i" / "header.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "format": 3}))
    with pytest.raises(CodeIndexError, match="format 3; this library reads 1 and 2"):
        CodeIndex.open(tmp_path / "i")
    path.write_text(json.dumps({**raw, "dim": 40}))
    with pytest.raises(CodeIndexError, match=r"header\.json is damaged"):
        CodeIndex.open(tmp_path / "i")
    old = {name: raw[name] for name in raw if name not in ("sha256", "files", "roots")}
    path.write_text(json.dumps({**old, "format": 1, "dim": 30}))
    with pytest.raises(CodeIndexError, match=r"damaged.*30"):
        CodeIndex.open(tmp_path / "i")
    path.write_text("{")
    with pytest.raises(CodeIndexError, match="not readable JSON"):
        CodeIndex.open(tmp_path / "i")


def test_header_reads_what_it_wrote(tmp_path: Path, origin: Origin) -> None:
    files = {"codes.u8": File(1920, "ab" * 32)}
    header = Header(origin, 1280, Settings(kind="ivf", lists=7), True, 12, 3, ("/p",), files)
    (tmp_path / "header.json").write_text(header.text())
    assert Header.read(tmp_path) == header
    assert Origin.parse(str(origin)) == origin
    with pytest.raises(CodeIndexError, match="is not"):
        Origin.parse("0123456789ab")


def test_an_interrupted_save_leaves_the_old_index(tmp_path: Path, origin: Origin) -> None:
    folder = tmp_path / "i"
    index = CodeIndex.build(folder, [batch()], origin, 32)
    # What a killed process leaves: files of a generation that no header names.
    (folder / "000002-codes.u8").write_bytes(b"half")
    (folder / "000002-accelerator.faiss").write_bytes(b"half")
    (folder / ".header.json.4711").write_bytes(b"half")
    assert len(CodeIndex.open(folder)) == 50

    def fail(step: str, _: int) -> None:
        if step == "sorting ids":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.save(progress=fail)
    index.delete(["r0"])
    index.save()
    assert len(CodeIndex.open(folder)) == 49
    assert {path.name[:6] for path in folder.iterdir()} == {"000002", "header", ".lock"}


def test_an_id_that_occurs_in_two_batches_is_named(tmp_path: Path, origin: Origin) -> None:
    with pytest.raises(CodeIndexError, match="'r0' occurs twice"):
        CodeIndex.build(tmp_path / "i", [batch(), batch(1)], origin, 32)
    with pytest.raises(CodeIndexError, match="not a code index"):
        CodeIndex.open(tmp_path / "i")
    assert len(CodeIndex.build(tmp_path / "i", [batch()], origin, 32)) == 50


def test_a_rebuild_replaces_the_index_under_an_open_one(tmp_path: Path, origin: Origin) -> None:
    folder = tmp_path / "i"
    old = CodeIndex.build(folder, [batch()], origin, 32)
    new = CodeIndex.build(folder, [batch(20)], origin, 32)
    query = batch().codes[:1]
    assert len(old.search(query, origin, k=50).ids(0)) == 50
    assert len(new.search(query, origin, k=50).ids(0)) == 20
    with pytest.raises(CodeIndexError, match=r"saved by another process.*open it again"):
        old.save()


def test_two_processes_do_not_save_at_once(tmp_path: Path, origin: Origin) -> None:
    folder = tmp_path / "i"
    index = CodeIndex.build(folder, [batch()], origin, 32)
    hold = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CodeIndexError, match="another process is saving"):
            index.save()
        other.communicate()
    index.save()


def test_codes_are_mapped_not_read(tmp_path: Path, origin: Origin) -> None:
    """Opening 64 MB of codes and touching one row leaves the rest on disk."""
    rows = 1 << 16
    codes = np.zeros((rows, 1024), dtype=np.uint8)
    ids = [str(row) for row in range(rows)]
    CodeIndex.build(tmp_path / "i", [Batch(ids, codes)], origin, 8192)
    probe = (
        "import sys, pathlib\n"
        "from unified_embedding.index import CodeIndex\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "before = resident()\n"
        "index = CodeIndex.open(pathlib.Path(sys.argv[1]))\n"
        "assert '65535' in index\n"
        "print(resident() - before)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", probe, str(tmp_path / "i")],
        capture_output=True,
        check=True,
        text=True,
    )
    assert int(out.stdout) < 16e6


@pytest.mark.parametrize(
    ("nprobe", "lists", "visited"),
    [(0, 1, 1), (0, 256, 32), (0, 1024, 32), (0, 4096, 128), (8, 4096, 8), (1000, 64, 64)],
)
def test_the_clusters_that_a_query_visits_grow_with_the_index(
    nprobe: int, lists: int, visited: int
) -> None:
    assert Settings(kind="ivf", nprobe=nprobe).probes(lists) == visited
