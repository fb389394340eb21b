"""The fuzzer itself: its cases can be done again, and it sees what it is there to see."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("faiss", reason="the extra `search` is not installed")
pytest.importorskip("psutil", reason="the extra `search` is not installed")

from unified_embedding.fuzzing import campaign, cases, in_process, wire

ARCHIVE_BLOCK = 512


@pytest.mark.parametrize("name", cases.TARGETS)
def test_a_case_is_a_function_of_seed_and_number(name: str) -> None:
    make = cases.TARGETS[name].make
    first = [make(in_process.random_of(0, name, number)) for number in range(20)]
    assert first == [make(in_process.random_of(0, name, number)) for number in range(20)]
    assert first != [make(in_process.random_of(1, name, number)) for number in range(20)]


def test_malformed_requests_can_be_sent_again() -> None:
    def drawn() -> list[bytes]:
        return [wire.malformed(in_process.random_of(0, "server", n)).data for n in range(50)]

    assert drawn() == drawn()


def test_every_seed_is_good(root: Path) -> None:
    for path in sorted((root / "fuzz/seeds").iterdir()):
        name = {".tar": "tar", ".parquet": "parquet", ".csv": "csv"}.get(path.suffix, "decode")
        assert path.stat().st_size <= 20 * ARCHIVE_BLOCK
        case = cases.Case(path.read_bytes(), {"name": path.name})
        assert cases.TARGETS[name].check(case) == "answered", path


@pytest.mark.parametrize(
    ("status", "message", "why"),
    [
        ("INVALID_ARGUMENT", "image 0: the image is empty (0 bytes)", ""),
        ("CANCELLED", "overloaded, the request was dropped", ""),
        ("INTERNAL", "KeyError", "answered INTERNAL"),
        ("UNAVAILABLE", "", "answered UNAVAILABLE"),
        ("HTTP 400", "", ""),
        ("HTTP 500", '{"error":"Traceback"}', "answered HTTP 500"),
        ("INVALID_ARGUMENT", "at /srv/model.py(4)", "a traceback or a path"),
        ("INVALID_ARGUMENT", "x" * 5000, "more than 600 characters"),
        ("OK", "", "no embedding"),
    ],
)
def test_unfit_answers_are_seen(status: str, message: str, why: str) -> None:
    found = wire.problem(wire.Answer(status, message, {}))
    assert why in found
    assert bool(found) == bool(why)


def test_growth_is_counted_once_memory_has_settled() -> None:
    rising = [100.0 + 10 * minute for minute in range(40)]
    assert campaign.growth_mb([0.0] * 9 + [500.0] * 31) == 0
    assert 200 < campaign.growth_mb(rising) < 300


def test_a_process_that_dies_is_found_kept_and_gone_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for the program: dies at the third case, and ends in order when started after it.
    program = tmp_path / "fuzz.py"
    program.write_text(
        "import os, signal, struct, sys\n"
        "first, journal = int(sys.argv[4]), sys.argv[6]\n"
        "open(journal, 'wb').write(struct.pack('4q', max(first, 3), 2, 0, 0))\n"
        "first < 3 and os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.setattr(in_process, "PROGRAM", (sys.executable, str(program)))
    tally = in_process.run("crop", 0, 600, tmp_path / "out")
    assert tally.outcomes["breach"] == 1
    ((kind, path),) = tally.breaches.items()
    assert kind == "the process died (SIGSEGV)"
    name, case = in_process.load(path)
    assert (name, case) == (
        "crop",
        cases.TARGETS["crop"].make(in_process.random_of(0, "crop", 3)),
    )


def test_a_saved_case_is_replayed(root: Path, tmp_path: Path) -> None:
    def replayed(file: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(root / "fuzz/fuzz.py"), "replay", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    saved = in_process.save(tmp_path, "one", "crop", "why", cases.Case(b"0,0,1,1", {"count": 1}))
    assert (replayed(saved).returncode, replayed(saved).stdout) == (0, "answered\n")
    # A crop whose count is missing stands for a fault of the code under test.
    record = json.loads(saved.read_text())
    saved.write_text(json.dumps({**record, "parameters": {}}))
    again = replayed(saved)
    assert again.returncode == 1
    assert "KeyError: 'count'" in again.stdout
