"""Malformed requests to a real server, and good ones beside them whose answers are known."""

import contextlib
import io
import json
import os
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unified_embedding.fuzzing import in_process, wire
from unified_embedding.fuzzing.cases import Case
from unified_embedding.serving.local_server import LocalServer, start

TARGET: Final = "server"
GOOD_CALLERS: Final = 4
SENDERS: Final = 2
_THREADS: Final = 3
# A request that an idle server answers in .1 s may take 2 s; on a slow machine, as many times
# longer as it takes there idle.
_SLOW_S: Final = 2.0
_SLOWER: Final = 20
_MEMORY_MB: Final = 100
# Shorter runs tell how memory grows, and are not judged by it: it still settles.
_JUDGED_S: Final = 240
_SETTLED: Final = 0.25


@dataclass
class Seen:
    """What happened in a campaign."""

    good: int = 0
    wrong: int = 0
    refused: int = 0
    slow: int = 0
    slowest_s: float = 0
    idle_s: float = 0
    pictures: int = 0
    requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    breaches: dict[str, Path] = field(default_factory=dict)
    memory_mb: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    ready: bool = False
    exit_code: int = 0
    left: list[str] = field(default_factory=list)
    log_kb: float = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def run(repository: Path, seconds: float, seed: int, out: Path) -> Seen:
    """Serve `repository`, send to it for `seconds`, stop it, and tell what was seen."""
    out.mkdir(parents=True, exist_ok=True)
    seen = Seen()
    server = start(repository, out / "tritonserver.log")
    shm = set(shared_memory(server.process.pid))
    try:
        requests = good_requests()
        truth = known(server, requests, seen)
        before = processes(server.process.pid)
        quiet_kb = server.log.stat().st_size / 1000
        with sending(server, seconds, seed, out, seen):
            beside(server, requests, truth, seconds, seed, seen)
        seen.log_kb = server.log.stat().st_size / 1000 - quiet_kb
        now = processes(server.process.pid)
        seen.lost = [name for process, name in before.items() if process not in now]
        shm |= set(shared_memory(server.process.pid))
        with contextlib.closing(wire.Caller(server.grpc_url)) as caller:
            seen.ready = caller.ready()
    finally:
        seen.exit_code = server.stop(120)
    seen.left = sorted(path for path in shm if os.path.exists(path))
    return seen


def good_requests() -> list[bytes]:
    """Requests as real callers send them: one picture and several, with and without a crop."""
    pictures = []
    for number, (width, height) in enumerate(((640, 480), (224, 224), (480, 640), (1200, 900))):
        small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        written = io.BytesIO()
        picture.save(written, ("JPEG", "PNG", "WEBP", "JPEG")[number])
        pictures.append(written.getvalue())
    messages = [wire.request([picture]) for picture in pictures]
    messages += [wire.request(pictures[:2]), wire.request(pictures, "0.1,0.1,0.6,0.9")]
    messages.append(wire.request(pictures[2:3], timeout_s=10**6))
    return [message.SerializeToString() for message in messages]


def known(server: LocalServer, requests: Sequence[bytes], seen: Seen) -> list[dict[str, bytes]]:
    """The answers of the idle server; every one must be given three times alike."""
    truth, took = [], []
    with contextlib.closing(wire.Caller(server.grpc_url)) as caller:
        for message in requests:
            answers = []
            for _ in range(3):
                began = time.monotonic()
                answers.append(caller.send(message))
                took.append(time.monotonic() - began)
            first = answers[0]
            if first.status != "OK" or any(answer != first for answer in answers):
                raise SystemExit(f"the idle server answers {first.status}: {first.message}")
            truth.append(first.tensors)
    seen.idle_s = statistics.median(took)
    return truth


def beside(
    server: LocalServer,
    requests: Sequence[bytes],
    truth: Sequence[dict[str, bytes]],
    seconds: float,
    seed: int,
    seen: Seen,
) -> None:
    """Good callers, one after another each, and a reading of memory every second."""
    end = time.monotonic() + seconds
    limit = max(_SLOW_S, _SLOWER * seen.idle_s)

    def call(number: int) -> None:
        random = in_process.random_of(seed, "good", number)
        with contextlib.closing(wire.Caller(server.grpc_url)) as caller:
            while time.monotonic() < end:
                which = random.randrange(len(requests))
                began = time.monotonic()
                answer = caller.send(requests[which])
                took = time.monotonic() - began
                with seen.lock:
                    seen.good += 1
                    seen.slowest_s = max(seen.slowest_s, took)
                    seen.slow += took > limit
                    if answer.status != "OK":
                        seen.refused += 1
                        seen.answers[f"good: {answer.status} {answer.message[:60]}"] += 1
                    else:
                        seen.wrong += answer.tensors != truth[which]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(GOOD_CALLERS)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        seen.memory_mb.append(memory_mb(server.process.pid))
        time.sleep(1)
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def sending(
    server: LocalServer, seconds: float, seed: int, out: Path, seen: Seen
) -> Iterator[None]:
    """Processes that send malformed requests; what they tell is in `seen` afterwards."""
    command = [*in_process.PROGRAM, "sender"]
    addresses = [server.grpc_url, urlsplit(server.http_url).netloc]
    senders = []
    with contextlib.ExitStack() as files:
        for number in range(SENDERS):
            told = files.enter_context((out / f".sender-{number}").open("w+"))
            arguments = [*addresses, str(seed), str(number), f"{seconds:.1f}", str(out)]
            senders.append((subprocess.Popen([*command, *arguments], stdout=told), told))
        try:
            yield
            # A call may be on its way for as long as a call may take.
            codes = [process.wait(300) for process, _ in senders]
        finally:
            for process, _ in senders:
                process.kill()
        if any(codes):
            raise SystemExit(f"a sender of malformed requests ended with {max(codes)}")
        for number, (_, told) in enumerate(senders):
            told.seek(0)
            for line in told:
                _note(seen, json.loads(line))
            (out / f".sender-{number}").unlink()


def sender(grpc_url: str, http_url: str, seed: int, part: int, seconds: float, out: Path) -> None:
    """In a process of its own: malformed requests, several at a time; a line for each breach."""
    host, _, port = http_url.rpartition(":")
    end, lock = time.monotonic() + seconds, threading.Lock()
    counts: Counter[str] = Counter()
    numbers = iter(range(part, 1 << 60, SENDERS))
    kinds = set()

    def run() -> None:
        with contextlib.closing(wire.Caller(grpc_url)) as caller:
            while time.monotonic() < end:
                with lock:
                    number = next(numbers)
                case = wire.malformed(in_process.random_of(seed, TARGET, number))
                answer = wire.send(case, caller, (host, int(port)))
                why = wire.problem(answer)
                with lock:
                    counts["pictures"] += case.parameters["pictures"]
                    counts["requests"] += 1
                    counts[f"answer {answer.status}"] += 1
                    if not why or why in kinds:
                        continue
                    kinds.add(why)
                    text = f"{why}: {answer.message[:2000]}"
                    path = in_process.save(out, f"server-{seed}-{number}", TARGET, text, case)
                    print(json.dumps({"kind": why, "path": str(path)}), flush=True)

    threads = [threading.Thread(target=run) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"counts": counts}), flush=True)


def replay(case: Case, repository: Path, out: Path) -> str:
    """Send one saved request to a server of its own; what is wrong with the answer."""
    out.mkdir(parents=True, exist_ok=True)
    server = start(repository, out / "tritonserver.log")
    try:
        before = processes(server.process.pid)
        address = urlsplit(server.http_url)
        with contextlib.closing(wire.Caller(server.grpc_url)) as caller:
            answer = wire.send(case, caller, (address.hostname or "", address.port or 0))
            lost = set(before) - set(processes(server.process.pid))
            print(f"{answer.status} {answer.message[:2000]}")
            return wire.problem(answer) or ("a process died" if lost else "")
    finally:
        server.stop(120)


def processes(pid: int) -> dict[tuple[int, float], str]:
    """The server's living processes and what they run, by process id and start."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    name = " ".join(process.cmdline()[:2])[-60:]
                    found[process.pid, process.create_time()] = name
    return found


def shared_memory(pid: int) -> Iterator[str]:
    """The files in /dev/shm that the server's processes have mapped."""
    for number, _ in processes(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{number}/maps").read_text().splitlines():
                path = line.partition("/dev/shm/")[2]
                if path and not path.endswith("(deleted)"):
                    yield f"/dev/shm/{path}"


def memory_mb(pid: int) -> float:
    """Anonymous memory of the server's processes, and the shared memory that they use."""
    total = 0
    for number, _ in processes(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{number}/status").read_text()
            total += 1024 * int(status.partition("RssAnon:")[2].split()[0])
    for path in set(shared_memory(pid)):
        with contextlib.suppress(OSError):
            total += 512 * os.stat(path).st_blocks
    return total / 1e6


def growth_mb(memory: Sequence[float]) -> float:
    """From when it has settled, a quarter of the way, to the end: medians of a tenth each."""
    tenth = max(1, len(memory) // 10)
    first = int(len(memory) * _SETTLED)
    return statistics.median(memory[-tenth:]) - statistics.median(memory[first : first + tenth])


def report(console: Console, seen: Seen, seconds: float, seed: int) -> bool:
    """Print what was seen beside what is promised; True when every promise held."""
    limit = max(_SLOW_S, _SLOWER * seen.idle_s)
    grown = growth_mb(seen.memory_mb)
    judged = seconds >= _JUDGED_S
    internal = sum(seen.answers[f"answer {code}"] for code in ("INTERNAL", "UNKNOWN"))
    table = Table(title=f"a real server, {seconds:.0f} s, seed {seed}")
    for column in ("what", "seen", "promised"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = [
        ("malformed pictures", seen.pictures, "", True),
        ("malformed requests in all", seen.requests, "", True),
        ("answered INTERNAL or UNKNOWN", internal, "0", not internal),
        ("kinds of other unfit answers", len(seen.breaches), "0", not seen.breaches),
        ("good requests beside them", seen.good, "", seen.good > 0),
        ("of them answered wrongly, by one bit or more", seen.wrong, "0", not seen.wrong),
        ("of them not answered", seen.refused, "0", not seen.refused),
        # Told, and not judged, by CI: a time depends on what else its machine is doing.
        (
            f"of them over {limit:.1f} s (idle: {seen.idle_s:.3f} s)",
            seen.slow,
            "" if "CI" in os.environ else "0",
            "CI" in os.environ or not seen.slow,
        ),
        ("the slowest of them, s", round(seen.slowest_s, 2), "", True),
        ("processes that died or were replaced", len(seen.lost), "0", not seen.lost),
        ("ready at the end", seen.ready, "True", seen.ready),
        ("memory grown, MB", round(grown), f"{_MEMORY_MB}" if judged else "",
         grown <= _MEMORY_MB or not judged),
        ("exit code after SIGTERM", seen.exit_code, "0", seen.exit_code == 0),
        ("files left in /dev/shm", len(seen.left), "0", not seen.left),
        ("server's log, kB", round(seen.log_kb), "", True),
    ]  # fmt: skip
    for what, figure, promised, held in rows:
        shown = f"{figure:,}" if isinstance(figure, int) and figure is not True else str(figure)
        table.add_row(what, shown if held else f"[red]{shown}[/]", promised)
    console.print(table)
    for name, count in sorted(seen.answers.items()):
        console.print(f"  {count:7,} {escape(name)}", highlight=False)
    for kind, path in seen.breaches.items():
        console.print(f"[red]breach:[/] {escape(kind)}\n  {path}", highlight=False)
    for name in seen.lost:
        console.print(f"[red]died:[/] {escape(name)}", highlight=False)
    return all(held for *_, held in rows)


def _note(seen: Seen, line: dict[str, object]) -> None:
    if "counts" in line:
        counts = Counter(line["counts"])  # type: ignore[call-overload]
        seen.pictures += counts.pop("pictures", 0)
        seen.requests += counts.pop("requests", 0)
        seen.answers.update(counts)
    else:
        seen.breaches.setdefault(str(line["kind"]), Path(str(line["path"])))
