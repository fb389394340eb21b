"""`index gate`: recall of two versions on labelled queries, each through its own embedder."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, serving

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.client import EmbedderClient
from unified_embedding.errors import InputError
from unified_embedding.index import Batch, CodeIndex, Origin
from unified_embedding.index.following import activate
from unified_embedding.search.upgrade import compare, read_queries

GREEN = "abcabcabcabc"
ROWS = 200


@pytest.fixture(scope="module")
def peers() -> Iterator[tuple[str, str]]:
    """Servers of two versions."""
    green = Peer(config_version=GREEN, stamp=lambda number: f"{GREEN} {ENGINE}", max_batch_size=16)
    with serving(Peer(max_batch_size=16)) as old, serving(green) as new:
        yield old.url, new.url


def picture(row: int) -> bytes:
    return f"picture {row}".encode()


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """An active index in which every query finds its row, and labelled queries, two a cluster."""
    place = tmp_path / "live"
    build(place / "blue", VERSION, range(ROWS))
    activate(place / "blue")
    (tmp_path / "shots").mkdir()
    lines = []
    for row in range(ROWS):
        (tmp_path / "shots" / f"{row}.jpg").write_bytes(picture(row))
        lines.append((f"shots/{row}.jpg", f"row {row}", f"product {row // 2}"))
    write(tmp_path / "queries.csv", lines)
    return place


def build(folder: Path, version: str, shown: "range | list[int]", rows: int = ROWS) -> CodeIndex:
    """An index of rows 0 to `rows`, of which row n has the code of picture shown[n]."""
    names = [f"row {row}" for row in range(rows)]
    batch = Batch(names, codes([picture(shown[row]) for row in range(rows)]))
    return CodeIndex.build(folder, [batch], Origin(version, ENGINE), DIM)


def write(file: Path, lines: list[tuple[str, ...]]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("image", "id", "cluster")[: len(lines[0])])
        writer.writerows(lines)


def gate(
    root: Path, live: Path, urls: tuple[str, ...], *options: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "clients/index.py", "gate", str(live / "green")]
    command += ["--queries", str(live.parent / "queries.csv"), "--k", "1", *options]
    command += [part for url in urls for part in ("--url", url)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_an_equal_index_may_take_over(root: Path, live: Path, peers: tuple[str, str]) -> None:
    build(live / "green", GREEN, range(ROWS))
    done = gate(root, live, peers, "--margin", "3")
    assert done.returncode == 0, done.stderr
    assert "200 queries in 100 clusters" in done.stdout
    assert "100.0 [100.0, 100.0]" in done.stdout
    assert "change" in done.stdout
    assert "+0.0 [+0.0, +0.0]" in done.stdout
    # One hundred clusters cannot show that less than three points are lost.
    done = gate(root, live, peers, "--margin", "2")
    assert done.returncode == 1
    assert "label 150" in done.stderr


def test_a_worse_one_and_one_that_lacks_pictures_are_refused(
    root: Path, live: Path, peers: tuple[str, str]
) -> None:
    worse = [row if row % 10 else row + 1000 for row in range(ROWS)]
    build(live / "green", GREEN, worse)
    done = gate(root, live, peers, "--margin", "5")
    assert done.returncode == 1
    assert "-10.0 [-" in done.stdout
    assert "refused: recall@1 may be lower by" in done.stderr
    build(live / "green", GREEN, range(ROWS), rows=ROWS - 3)
    done = gate(root, live, peers, "--margin", "5")
    assert done.returncode == 1
    assert "3 pictures of the old index are not in the new one, such as 'row 197'" in done.stderr


def test_the_interval_is_that_of_the_paired_difference_over_clusters(
    tmp_path: Path, live: Path, peers: tuple[str, str]
) -> None:
    # Whole clusters fail together: 12 of 100 products, in both queries.
    failing = set(range(24))
    new = build(
        live / "green", GREEN, [row + 1000 if row in failing else row for row in range(ROWS)]
    )
    old = CodeIndex.open(live / "blue")
    queries = read_queries(tmp_path / "queries.csv")
    with EmbedderClient(peers[0]) as before, EmbedderClient(peers[1]) as after:
        verdict = compare((old, before), (new, after), queries, k=1, margin=20)
    assert (verdict.old.mean, verdict.new.mean) == (100, 88)
    assert verdict.change.mean == -12
    # Normal approximation over 100 clusters of equal size.
    half = 1.96 * 100 * np.sqrt(0.12 * 0.88 / 100)
    assert verdict.change.low == pytest.approx(-12 - half, abs=1.0)
    assert verdict.change.high == pytest.approx(-12 + half, abs=1.0)
    assert verdict.problems == []


def test_a_server_that_serves_neither_version_ends_it(
    root: Path, live: Path, peers: tuple[str, str]
) -> None:
    build(live / "green", GREEN, range(ROWS))
    done = gate(root, live, peers[:1])
    assert done.returncode == 2
    assert f"serves embedder version {VERSION}, expected {GREEN}" in done.stderr
    assert gate(root, live, peers, "--against", str(live / "green")).returncode == 2


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([("shots/1.jpg", "")], "line 2: give a value"),
        ([("shots/1.jpg", "row 1"), ("shots/none.jpg", "row 2")], "line 3: there is no picture"),
        ([("shots/1.jpg", "a", "x"), ("shots/1.jpg", "b", "y")], "line 3: .* two clusters"),
    ],
)
def test_a_wrong_line_is_named(
    live: Path, tmp_path: Path, lines: list[tuple[str, ...]], sentence: str
) -> None:
    write(tmp_path / "wrong.csv", lines)
    with pytest.raises(InputError, match=sentence):
        read_queries(tmp_path / "wrong.csv")


def test_answers_that_are_nowhere_and_pictures_that_are_none_are_named(
    live: Path, tmp_path: Path, peers: tuple[str, str]
) -> None:
    old, new = CodeIndex.open(live / "blue"), build(live / "green", GREEN, range(ROWS))
    (tmp_path / "bad.jpg").write_bytes(b"bad picture")
    write(tmp_path / "wrong.csv", [("shots/1.jpg", "row 1"), ("shots/2.jpg", "/srv/row 2")])
    write(tmp_path / "bad.csv", [("shots/1.jpg", "row 1"), ("bad.jpg", "row 2")])
    with EmbedderClient(peers[0]) as before, EmbedderClient(peers[1]) as after:
        for name, sentence in (("wrong.csv", "'/srv/row 2'"), ("bad.csv", r"bad\.jpg: not an")):
            queries = read_queries(tmp_path / name)
            with pytest.raises(InputError, match=sentence):
                compare((old, before), (new, after), queries, k=1, margin=20)
