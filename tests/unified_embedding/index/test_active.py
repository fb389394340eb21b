"""The index that is active: followed without a restart, and whole whatever is killed when."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from kill_steps import BLUE, DIM, GREEN, STEPS, add, batch, codes

from unified_embedding.errors import CodeIndexError, IndexMismatch
from unified_embedding.index import CodeIndex, Origin
from unified_embedding.index.active import ACTIVE_FILE, Active
from unified_embedding.index.following import Following, activate, open_index, remove

HANG = 300


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """Two indexes of 30 rows, of which blue is active."""
    place = tmp_path / "live"
    for name, origin in (("blue", BLUE), ("green", GREEN)):
        CodeIndex.build(place / name, [batch(origin, 0, 30)], origin, DIM)
    activate(place / "blue")
    return place


@pytest.mark.parametrize("step", STEPS)
def test_killed_before_any_of_its_moves_a_step_leaves_one_whole_index(
    live: Path, step: str
) -> None:
    program = Path(__file__).with_name("kill_steps.py")
    done = subprocess.run(
        [sys.executable, program, live, step], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    kills = [end for end in ends if end["killed"]]
    assert len(kills) == len(ends) - 1 >= 3
    for end in ends:
        for found in (end["after"], end["repeated"]):
            assert found["version"] == found["stated"]
            assert found["right"]
            assert found["rows"] in (30, 40)
    last = ends[-1]["after"]
    for end in ends:  # Killed or not, the same command comes to the same end.
        assert end["repeated"] == last
    expected = {"activate": GREEN.version}.get(step, BLUE.version)
    assert last["version"] == expected
    assert last["rows"] == (40 if "active one" in step else 30)
    assert ("green" in last["left"]) == (step != "remove")
    assert not [name for name in last["left"] if "removed" in name]


def test_the_file_says_version_index_and_sha256_and_stays_in_step_with_additions(
    live: Path,
) -> None:
    import hashlib

    for change in (lambda: None, lambda: add(live / "blue"), lambda: activate(live / "green")):
        change()
        said = json.loads((live / ACTIVE_FILE).read_text())
        header = (live / said["index"] / "header.json").read_bytes()
        assert said == {
            "version": open_index(live).header.origin.version,
            "index": said["index"],
            "sha256": hashlib.sha256(header).hexdigest(),
        }
    assert said["index"] == "green"


def test_who_follows_sees_a_flip_an_addition_and_the_way_back(live: Path) -> None:
    following = Following(live, lambda index: (index, len(index)))
    first = following.now()
    assert following.now() is first  # Opened once for as long as nothing changes.
    assert first[0].header.origin == BLUE
    add(live / "blue")
    assert following.now()[1] == 40
    activate(live / "green")
    green = following.now()[0]
    assert (green.header.origin, len(green)) == (GREEN, 30)
    activate(live / "blue")
    remove(live / "green")
    assert following.now()[0].header.origin == BLUE
    # A request that began before goes on with what it had.
    assert green.search(codes(GREEN, 30), GREEN, k=1).ids(3) == ["row 3"]


def test_a_plain_index_is_opened_once(live: Path) -> None:
    following = Following(live / "blue", lambda index: index)
    first = following.now()
    add(live / "blue")
    assert following.now() is first


def test_while_one_opens_the_others_go_on_with_what_they_have(live: Path) -> None:
    opening, go_on = threading.Event(), threading.Event()

    def make(index: CodeIndex) -> CodeIndex:
        if index.header.origin == GREEN:
            opening.set()
            assert go_on.wait(HANG)
        return index

    following = Following(live, make)
    activate(live / "green")
    found: list[CodeIndex] = []
    opener = threading.Thread(target=lambda: found.append(following.now()))
    opener.start()
    assert opening.wait(HANG)
    assert following.now().header.origin == BLUE
    go_on.set()
    opener.join(HANG)
    assert found[0].header.origin == GREEN
    assert following.now() is found[0]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda live: (live / ACTIVE_FILE).write_text("{"), "is damaged"),
        (lambda live: (live / ACTIVE_FILE).write_text('{"version": "x"}'), "is damaged"),
        (lambda live: Active("x", "../blue", "y").write(live), "no folder beside it"),
        (lambda live: Active(BLUE.version, "blue", "0" * 64).write(live), "not what was made"),
        (lambda live: edit(live, version=GREEN.version), "must not be mixed"),
        (lambda live: shutil.rmtree(live / "blue"), "not a code index"),
    ],
)
def test_what_is_not_the_active_index_is_refused_and_the_old_one_searched_on(
    live: Path, damage: object, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    following = Following(live, lambda index: index)
    assert callable(damage)
    damage(live)
    with pytest.raises(CodeIndexError, match=sentence):
        open_index(live)
    with pytest.raises(CodeIndexError, match=sentence):
        Following(live, lambda index: index)
    assert following.now().header.origin == BLUE
    activate(live / "green")
    following._not_before = 0
    assert following.now().header.origin == GREEN


def edit(live: Path, **values: str) -> None:
    """As somebody does who joins one version's name with another's index."""
    said = json.loads((live / ACTIVE_FILE).read_text())
    Active(**{**said, **values}).write(live)


def test_codes_of_another_version_never_come_into_the_active_folder(live: Path) -> None:
    with pytest.raises(CodeIndexError, match="must not be mixed"):
        CodeIndex.build(live / "blue", [batch(GREEN, 0, 40)], GREEN, DIM)
    assert open_index(live).header.origin == BLUE
    assert len(CodeIndex.build(live / "green", [batch(GREEN, 0, 40)], GREEN, DIM)) == 40


def test_remove_takes_an_index_that_is_not_active_and_nothing_else(live: Path) -> None:
    with pytest.raises(CodeIndexError, match="is active and stays"):
        remove(live / "blue")
    (live / "green" / "notes.txt").write_text("mine")
    with pytest.raises(CodeIndexError, match=r"other things \(notes\.txt\)"):
        remove(live / "green")
    (live / "green" / "notes.txt").unlink()
    with pytest.raises(CodeIndexError, match="not a code index"):
        remove(live / "nothing")
    remove(live / "green")
    assert sorted(path.name for path in live.iterdir()) == [".active.lock", ACTIVE_FILE, "blue"]
    (live / ACTIVE_FILE).unlink()
    with pytest.raises(CodeIndexError, match="no index of this folder is active"):
        remove(live / "blue")


def test_activate_takes_whole_indexes_in_the_folder_only(live: Path) -> None:
    with pytest.raises(CodeIndexError, match="not a code index"):
        activate(live / "nothing")
    (live / "link").symlink_to(live / "green")
    with pytest.raises(CodeIndexError, match="is a link"):
        activate(live / "link")
    codes_file = next((live / "green").glob("*-codes.u8"))
    codes_file.write_bytes(b"x" + codes_file.read_bytes()[1:])
    with pytest.raises(CodeIndexError, match=r"codes\.u8"):
        activate(live / "green")
    assert open_index(live).header.origin == BLUE


def test_only_a_declared_pair_is_searched_and_only_one_way(live: Path) -> None:
    blue, green = CodeIndex.open(live / "blue"), CodeIndex.open(live / "green")
    declared = Origin(GREEN.version, GREEN.engine, (BLUE.version,))
    query = codes(BLUE, 30)
    assert declared == GREEN  # Who computed it is the same.
    assert blue.search(query, declared, k=1).ids(7) == ["row 7"]
    for index, origin in ((blue, GREEN), (green, BLUE)):
        with pytest.raises(IndexMismatch, match="cannot be compared"):
            index.search(query, origin, k=1)
    with pytest.raises(IndexMismatch):  # It may search, and never be stored there.
        blue.add(["new"], query[:1], declared)
    with pytest.raises(IndexMismatch):
        blue.compare_engine(declared, ["row 0"], query[:1])
    # What a query's embedder declares is no part of an index.
    made = CodeIndex.build(live / "third", [batch(GREEN, 0, 5)], declared, DIM)
    assert CodeIndex.open(live / "third").header.origin.compatible_with == ()
    assert np.array_equal(made.search(codes(GREEN, 5), GREEN, k=1).rows[:, 0], np.arange(5))
