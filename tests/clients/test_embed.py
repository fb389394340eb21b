"""clients/embed.py against a KServe v2 server that takes any bytes for a picture."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("pyarrow", reason="the extra `client` is not installed")
pytest.importorskip("typer", reason="the extra `client` is not installed")

import pyarrow.parquet as pq
from kserve_peer import ENGINE, POISON, VERSION, Mortal, Peer, mortal, serving, vectors

from unified_embedding.cli import embed
from unified_embedding.corpus.one_file import SHARD_SIZE


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer(max_batch_size=16)) as running:
        yield running


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(peer: Peer | Mortal, *inputs: str, out: str = "e.npz", **options: Any) -> int:
    """Run the program in this process; its exit code."""
    with pytest.raises(SystemExit) as end:
        embed.main(list(inputs), Path(out), url=peer.url, **options)
    return int(end.value.code or 0)


def pictures(folder: str, count: int) -> list[Path]:
    """`count` different files that the peer takes for pictures, in the order of their names."""
    Path(folder).mkdir()
    files = [Path(folder, f"{row:05d}.jpg") for row in range(count)]
    for file in files:
        file.write_bytes(file.name.encode())
    return files


def read(path: str) -> dict[str, Any]:
    """A file of vectors as columns, whatever its format."""
    if path.endswith(".npz"):
        with np.load(path) as arrays:
            columns = dict(arrays)
        return {**columns, "id": columns["id"].tolist()}
    if path.endswith(".jsonl"):
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        columns["code"] = [list(bytes.fromhex(code)) for code in columns["code"]]
        return {**columns, "embedding": np.array(columns["embedding"])}
    table = pq.read_table(path).to_pydict()
    return {**table, "code": [list(code) for code in table["code"]]}


@pytest.mark.parametrize("out", ["e.parquet", "e.npz", "e.jsonl"])
def test_one_row_per_picture_in_every_format(peer: Peer, out: str) -> None:
    files = pictures("photos", 37)
    assert run(peer, "photos", out=f"new/{out}") == 0
    columns = read(f"new/{out}")
    truth = vectors([file.read_bytes() for file in files])
    assert list(columns["id"]) == [str(file) for file in files]
    np.testing.assert_array_equal(np.array(columns["embedding"], np.float32), truth)
    np.testing.assert_array_equal(
        np.array(columns["code"], np.uint8), np.packbits(truth > 0, axis=1)
    )
    assert set(columns["version"]) == {VERSION}
    assert set(columns["engine"]) == {ENGINE}
    assert os.listdir("new") == [out]  # Neither parts nor temporary files are left.


def test_parquet_columns_have_fixed_widths(peer: Peer) -> None:
    pictures("photos", 3)
    run(peer, "photos", out="e.parquet")
    schema = pq.read_schema("e.parquet")
    assert str(schema.field("embedding").type).endswith("[16]")
    assert str(schema.field("code").type) == "fixed_size_binary[2]"


def test_only_the_outputs_that_were_asked_for(peer: Peer) -> None:
    pictures("photos", 3)
    assert run(peer, "photos", outputs="code") == 0
    assert set(read("e.npz")) == {"id", "code", "version", "engine"}
    assert set(peer.requests[0].outputs) == {"code", "version"}


def test_one_crop_for_every_picture(peer: Peer) -> None:
    files = pictures("photos", 3)
    assert run(peer, "photos", crop="0,0,0.5,0.5") == 0
    images = [file.read_bytes() for file in files]
    np.testing.assert_array_equal(read("e.npz")["embedding"], vectors(images, "0,0,0.5,0.5"))


def test_a_folder_is_searched_for_pictures_only(peer: Peer) -> None:
    for name in ("b/1.JPG", "a/2.webp", "a/notes.md", "a.csv", ".hidden/3.jpg", "a/._2.jpg"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).write_text(name)
    assert run(peer, "photos/") == 0
    assert read("e.npz")["id"] == ["photos/a/2.webp", "photos/b/1.JPG"]


def test_named_files_patterns_and_repetitions(peer: Peer) -> None:
    pictures("photos", 12)
    Path("photos/notes.md").write_text("taken because it is named")
    inputs = ["photos/notes.md", "photos/0000[12].jpg", "./photos/00001.jpg", "**/00010.*"]
    assert run(peer, *inputs) == 0
    names = ["notes.md", "00001.jpg", "00002.jpg", "00010.jpg"]
    assert read("e.npz")["id"] == [f"photos/{name}" for name in names]


def test_bad_files_are_reported_and_skipped(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    files = pictures("photos", 40)
    for row in (0, 17, 18, 39):
        files[row].write_bytes(b"bad")
    files[5].unlink()
    files[5].symlink_to("nowhere")
    assert run(peer, "photos") == 1
    bad = {0, 5, 17, 18, 39}
    good = [file for row, file in enumerate(files) if row not in bad]
    columns = read("e.npz")
    assert columns["id"] == [str(file) for file in good]
    np.testing.assert_array_equal(
        columns["embedding"], vectors([file.read_bytes() for file in good])
    )
    said = capsys.readouterr().err
    assert "skipped photos/00017.jpg: not an image\n" in said
    assert "skipped photos/00005.jpg: cannot be read (No such file or directory)\n" in said
    assert "35 rows" in said
    assert "5 skipped" in said


def test_a_file_over_the_limit_is_refused_before_it_is_read(
    peer: Peer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pictures("photos", 3)
    with files[1].open("r+b") as file:
        file.truncate(10**12)  # A hole: no memory and no time would be enough to read it.
    os.mkfifo("photos/pipe.jpg")
    assert run(peer, "photos/00000.jpg", "photos/00001.jpg", "photos/pipe.jpg") == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "1,000,000,000,000 bytes; the limit is 64,000,000" in told
    assert "UNIFIED_EMBEDDING_MAX_IMAGE_BYTES" in told
    assert "it is not a regular file" in told
    assert list(read("e.npz")["id"]) == ["photos/00000.jpg"]
    monkeypatch.setenv("UNIFIED_EMBEDDING_MAX_IMAGE_BYTES", "5")
    assert run(peer, "photos/00000.jpg", out="small.npz") == 2
    assert "the limit is 5" in capsys.readouterr().err


def test_a_picture_over_which_the_server_dies_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pictures("photos", 6)
    files[4].write_bytes(POISON)
    with mortal(tmp_path) as doomed:
        assert run(doomed, "photos", timeout=300) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "skipped photos/00004.jpg: the server died twice while it had this picture" in told
    assert list(read("e.npz")["id"]) == [str(file) for file in files if file != files[4]]
    assert doomed.deaths == 2


def test_a_name_that_is_not_utf8_is_spelt_as_in_a_corpus(peer: Peer) -> None:
    pictures("photos", 2)
    with open(b"photos/\xff.jpg", "wb") as file:
        file.write(b"fine")
    assert run(peer, "photos") == 0
    columns = read("e.npz")
    assert columns["id"][2] == r"photos/\xff.jpg"
    np.testing.assert_array_equal(columns["embedding"][2], vectors([b"fine"])[0])


def test_nothing_is_written_when_no_picture_is_good(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("e.npz").write_text("from before")
    Path("a.jpg").write_bytes(b"bad")
    assert run(peer, "a.jpg") == 2
    assert Path("e.npz").read_text() == "from before"
    assert not Path("e.npz.parts").exists()
    assert "none of 1 files could be embedded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (["missing"], {}, "missing does not exist"),
        (["*.jpg"], {}, "no file matches *.jpg"),
        (["empty"], {}, "empty holds no picture (.jpg, "),
        (["one.jpg"], {"out": "e.csv"}, "--out e.csv ends with none of .parquet, .npz, .jsonl"),
        (["one.jpg"], {"outputs": "code,cod"}, "--outputs code,cod is not a selection"),
        (["one.jpg"], {"crop": "0,0,2,2"}, "crop"),
        (["one.jpg"], {"ca": Path("none.pem")}, "none.pem"),
        (["one.jpg"], {"key": Path("none.pem")}, "--tls-cert"),
    ],
)
def test_mistakes_of_the_command_line_are_named(
    peer: Peer,
    capsys: pytest.CaptureFixture[str],
    inputs: list[str],
    options: dict[str, Any],
    message: str,
) -> None:
    Path("empty").mkdir()
    if inputs == ["one.jpg"]:
        Path("one.jpg").write_bytes(b"fine")
    assert run(peer, *inputs, **options) == 2
    assert message in capsys.readouterr().err
    assert not peer.requests


def test_a_stopped_server_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pictures("photos", 2)
    with serving(Peer()) as peer:
        pass
    assert run(peer, "photos") == 2
    assert peer.url in capsys.readouterr().err
    assert not Path("e.npz").exists()


PATIENCE = 240.0
FILES = 2 * SHARD_SIZE + 100


@dataclass(frozen=True)
class Interrupted:
    """A run that lost its server in the second shard; files[3] is bad, `answered` were not."""

    files: list[Path]
    answered: set[str]


@pytest.fixture
def interrupted() -> Interrupted:
    files = pictures("photos", FILES)
    files[3].write_bytes(b"bad")
    with serving(Peer(max_batch_size=16)) as lost:
        last = SHARD_SIZE // lost.max_batch_size + 20
        lost.respond = lambda number, request: (
            (grpc.StatusCode.INTERNAL, "out of order") if number >= last else None
        )
        assert run(lost, "photos", out="e.parquet") == 2
    assert not Path("e.parquet").exists()
    sound = [request for request in lost.requests[: last - 1] if b"bad" not in request.images]
    answered = {image.decode() for request in sound for image in request.images}
    assert SHARD_SIZE < len(answered) < 2 * SHARD_SIZE
    return Interrupted(files, answered)


def test_an_interrupted_run_continues_after_its_last_answer(
    peer: Peer, interrupted: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(peer, "photos", out="e.parquet") == 1
    sent = [image.decode() for request in peer.requests for image in request.images]
    names = {file.name for file in interrupted.files} - {"00003.jpg"}
    assert sorted(sent) == sorted(names - interrupted.answered)
    said = capsys.readouterr().err
    assert "skipped photos/00003.jpg: not an image" in said
    assert f"{FILES - len(sent)} from an interrupted run" in said
    assert not Path("e.parquet.parts").exists()

    assert run(peer, "photos", out="whole.parquet") == 1
    assert Path("e.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_changed_files_are_embedded_again(peer: Peer, interrupted: Interrupted) -> None:
    done, part = (interrupted.files[row] for row in (7, SHARD_SIZE + 7))
    assert part.name in interrupted.answered
    for file in (done, part):
        file.write_bytes(b"another picture")
    assert run(peer, "photos", out="e.parquet") == 1
    assert sum(len(request.images) for request in peer.requests) >= FILES
    columns = read("e.parquet")
    for file in (done, part):
        row = columns["id"].index(str(file))
        np.testing.assert_array_equal(columns["embedding"][row], vectors([b"another picture"])[0])


def test_pictures_that_come_and_go_meanwhile_are_seen(peer: Peer, interrupted: Interrupted) -> None:
    for file in interrupted.files[SHARD_SIZE:]:
        file.unlink()
    Path("photos/00000.png").write_bytes(b"new")
    assert run(peer, "photos", out="e.parquet") == 1
    left = [file for file in interrupted.files[:SHARD_SIZE] if file.name != "00003.jpg"]
    columns = read("e.parquet")
    assert columns["id"] == sorted(map(str, [*left, Path("photos/00000.png")]))
    truth = [Path(name).read_bytes() for name in columns["id"]]
    np.testing.assert_array_equal(np.array(columns["embedding"]), vectors(truth))


@pytest.mark.usefixtures("interrupted")
def test_a_part_that_was_damaged_is_embedded_again(peer: Peer) -> None:
    Path("e.parquet.parts/shards/00000.parquet").write_bytes(b"PAR1 damaged")
    assert run(peer, "photos", out="e.parquet") == 1
    assert len(read("e.parquet")["id"]) == FILES - 1


@pytest.mark.usefixtures("interrupted")
def test_versions_are_not_mixed_by_continuing(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.config_version = "fedcba987654"
    peer.stamp = lambda number: f"fedcba987654 {ENGINE}"
    assert run(peer, "photos", out="e.parquet") == 2
    said = capsys.readouterr().err
    assert f"version '{VERSION}' (now 'fedcba987654')" in said
    assert "--restart" in said
    assert not peer.requests
    assert run(peer, "photos", out="e.parquet", restart=True) == 1
    assert set(read("e.parquet")["version"]) == {"fedcba987654"}


@pytest.mark.usefixtures("interrupted")
def test_crops_are_not_mixed_by_continuing(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(peer, "photos", out="e.parquet", crop="0,0,1,0.5") == 2
    assert "crop '' (now '0,0,1,0.5')" in capsys.readouterr().err


def test_another_engine_continues_with_a_warning(
    peer: Peer, interrupted: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.config_engine = "test-bf16"
    peer.stamp = lambda number: f"{VERSION} test-bf16"
    assert run(peer, "photos", out="e.parquet") == 1
    assert f"used engine {ENGINE}, the server now runs test-bf16" in capsys.readouterr().err
    columns = read("e.parquet")
    engines = dict(zip(columns["id"], columns["engine"], strict=True))
    earlier = {name for name, engine in engines.items() if engine == ENGINE}
    assert earlier == {f"photos/{name}" for name in interrupted.answered}
    assert set(engines.values()) == {ENGINE, "test-bf16"}


def test_a_server_that_changes_during_the_run_stops_it(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures("photos", 64)
    peer.stamp = lambda number: f"{VERSION if number < 3 else 'fedcba987654'} {ENGINE}"
    assert run(peer, "photos") == 2
    assert f"version changed from {VERSION} to fedcba987654" in capsys.readouterr().err
    assert not Path("e.npz").exists()


@pytest.mark.parametrize(
    ("kind", "count"),
    [(signal.SIGINT, 100), (signal.SIGTERM, SHARD_SIZE + 300)],
    ids=["INT", "TERM"],
)
def test_an_interruption_loses_no_answer(
    peer: Peer, root: Path, kind: signal.Signals, count: int
) -> None:
    files = pictures("photos", count)
    stuck, release = threading.Event(), threading.Event()
    last = (count - 50) // peer.max_batch_size

    def respond(number: int, request: Any) -> None:
        if number > last:
            stuck.set()
            release.wait(timeout=PATIENCE)

    command = [sys.executable, str(root / "clients/embed.py"), "photos", "--out", "e.npz"]
    with serving(Peer(max_batch_size=16, respond=respond)) as hanging:
        program = subprocess.Popen(
            [*command, "--inflight", "1", "--url", hanging.url],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        try:
            assert stuck.wait(timeout=PATIENCE)
            program.send_signal(kind)
            _, said = program.communicate(timeout=PATIENCE)
        finally:
            release.set()
            program.kill()
    assert program.returncode == 130
    assert "the same command continues from here" in said
    assert "Traceback" not in said
    assert sorted(os.listdir()) == ["e.npz.parts", "photos"]

    assert run(peer, "photos") == 0
    # Several threads wait for the one place in flight: the small request need not come last.
    answered = sum(len(request.images) for request in hanging.requests[:last])
    assert sum(len(request.images) for request in peer.requests) == count - answered
    assert read("e.npz")["id"] == [str(file) for file in files]
