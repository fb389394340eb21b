"""Runs targets in processes of their own, so that a crash or a hang is found and not suffered."""

import base64
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from unified_embedding.fuzzing.cases import TARGETS, Case

# What one case may take before its process is ended as hanging; a thousand times the usual.
_HANG_S: Final = 60.0
# Number of the case in work; how many were answered, refused, and a breach.
_JOURNAL: Final = struct.Struct("4q")
_OUTCOMES: Final = ("answered", "refused", "breach")


@dataclass
class Tally:
    """What became of one target's cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    breaches: dict[str, Path] = field(default_factory=dict)


PROGRAM: Final = (sys.executable, "-m", "unified_embedding.cli.fuzz")


def random_of(seed: int, target: str, number: int) -> Random:
    """The source of chance of one case."""
    return Random(f"{seed} {target} {number}")


def run(target: str, seed: int, seconds: float, folder: Path) -> Tally:
    """Fuzz one target for `seconds`; breaches are kept in `folder`, one of each kind."""
    tally, first, end = Tally(), 1, time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    journal, told = folder / f".{target}.journal", folder / f".{target}.told"
    while (left := end - time.monotonic()) > 0:
        journal.write_bytes(_JOURNAL.pack(first, 0, 0, 0))
        options = ["worker", target, str(seed), str(first), f"{left:.1f}", str(journal)]
        with told.open("wb") as stdout, (folder / f"{target}.stderr").open("wb") as stderr:
            child = subprocess.Popen([*PROGRAM, *options], stdout=stdout, stderr=stderr)
            ended = _watched(child, journal)
        for line in told.read_text().splitlines():
            _note(tally, line, target, seed, folder)
        number, *counts = _JOURNAL.unpack(journal.read_bytes())
        tally.outcomes.update(dict(zip(_OUTCOMES, counts, strict=True)))
        if child.returncode == 0:
            break
        how = ended or f"the process died ({_name(child.returncode)})"
        case = TARGETS[target].make(random_of(seed, target, number))
        _keep(tally, how, how, target, seed, number, case, folder)
        tally.outcomes["breach"] += 1
        first = number + 1
    journal.unlink(missing_ok=True)
    told.unlink(missing_ok=True)
    return tally


def _watched(child: "subprocess.Popen[bytes]", journal: Path) -> str:
    """Wait for the process's end; end it when one case takes too long."""
    seen, since = b"", time.monotonic()
    while True:
        try:
            child.wait(0.5)
            return ""
        except subprocess.TimeoutExpired:
            pass
        now = journal.read_bytes()
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > _HANG_S:
            child.kill()
            child.wait()
            return f"no end within {_HANG_S:.0f} s"


def worker(target: str, seed: int, first: int, seconds: float, journal: Path) -> None:
    """In the child: cases from number `first` on, and a line for each kind of breach."""
    warnings.simplefilter("ignore")
    file = os.open(journal, os.O_WRONLY)
    outcomes, kinds = dict.fromkeys(_OUTCOMES, 0), set()
    number, end = first, time.monotonic() + seconds
    while time.monotonic() < end:
        os.pwrite(file, _JOURNAL.pack(number, *outcomes.values()), 0)
        try:
            case = TARGETS[target].make(random_of(seed, target, number))
            outcomes[TARGETS[target].check(case)] += 1
        except Exception as error:
            outcomes["breach"] += 1
            if (kind := kind_of(error)) not in kinds:
                kinds.add(kind)
                why = traceback.format_exc(limit=-6)
                line = json.dumps({"kind": kind, "why": why, "number": number})
                print(line, flush=True)
        number += 1
    os.pwrite(file, _JOURNAL.pack(number, *outcomes.values()), 0)


def kind_of(error: Exception) -> str:
    """What equal breaches have in common: the error's class and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    words = re.sub(r"\d[\d,]*", "0", re.sub(r"/\S*/", "", str(error)))[:40].partition(":")[0]
    return f"{type(error).__name__} in {where}: {words}"


def _note(tally: Tally, line: str, target: str, seed: int, folder: Path) -> None:
    try:
        told = json.loads(line)
    except ValueError:  # Half a line of a process that died.
        return
    case = TARGETS[target].make(random_of(seed, target, told["number"]))
    _keep(tally, told["kind"], told["why"], target, seed, told["number"], case, folder)


def _keep(
    tally: Tally, kind: str, why: str, target: str, seed: int, number: int, case: Case, folder: Path
) -> None:
    if kind not in tally.breaches:
        tally.breaches[kind] = save(folder, f"{target}-{seed}-{number}", target, why, case)


def save(folder: Path, name: str, target: str, why: str, case: Case) -> Path:
    """A breach as a file that `REPLAY=` takes."""
    path = folder / f"{name}.json"
    data = base64.b64encode(case.data).decode()
    record = {"target": target, "why": why, "parameters": case.parameters, "data": data}
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def load(path: Path) -> tuple[str, Case]:
    """Target and case of a saved breach; any other file is a picture to decode."""
    if path.suffix != ".json":
        return "decode", Case(path.read_bytes())
    record = json.loads(path.read_text())
    return record["target"], Case(base64.b64decode(record["data"]), record["parameters"])


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
