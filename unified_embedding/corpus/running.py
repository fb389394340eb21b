"""A run over a corpus, from its first missing shard to the complete corpus, and how it ends."""

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from unified_embedding.corpus.corpus import FOLDERS, Corpus, Entry
from unified_embedding.corpus.executors import Executor, in_threads
from unified_embedding.corpus.worker import Load, ShardWorker
from unified_embedding.errors import (
    ClientError,
    CorpusError,
    ExecutorError,
    ImageError,
    InputError,
    RunError,
    StoreError,
)

# Of all pictures, before a disk that loses what is written is given up.
ATTEMPTS: Final = 3

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


FAILURES: Final = (
    RunError,
    ExecutorError,
    InputError,
    StoreError,
    CorpusError,
    ClientError,
    ImageError,
    ValueError,
    OSError,
)


@dataclass(frozen=True)
class Outcome:
    """What one run did.

    Attributes:
        entries: all shards.
        finished: how many of them an earlier run had left.
        images: pictures of this run.
        seconds: how long it took.
    """

    entries: list[Entry]
    finished: int
    images: int
    seconds: float


def ended(program: str, work: Callable[[], int]) -> int:
    """Do a program's work; returns the exit code that it returns, 2 or 130.

    An error (2) and an interruption by Ctrl-C or SIGTERM (130) are told in a sentence.
    """
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work()
    except KeyboardInterrupt:
        console.print(f"{program}: interrupted; the same command continues from here")
        return 130
    except FAILURES as error:
        console.print(f"{program}: {error}", style="red")
        return 2
    finally:
        signal.signal(signal.SIGTERM, handler)


def fill(
    program: str, corpus: Corpus, load: Load, workers: int = 1, ray_address: str | None = None
) -> Outcome:
    """Embed every shard that is not finished, and complete the corpus.

    Args:
        program: who says what is said.
        corpus: what to fill.
        load: how hard each worker may press the servers.
        workers: how many there are.
        ray_address: of the cluster that they run on; None for threads of this process.

    Raises:
        RunError: a shard could not be done; what was answered is kept.
        ExecutorError: the workers broke down.
    """
    began = time.monotonic()
    header = corpus.header
    each_shard = _executor(ray_address)
    corpus.store.sweep(*FOLDERS)
    finished = _sound(program, corpus, {})
    earlier, fresh = len(finished), 0
    with _progress() as progress:
        bar = progress.add_task("embedding", total=header.images)

        def advance(pictures: int) -> None:
            progress.advance(bar, pictures)

        while missing := [shard for shard in range(header.shards) if shard not in finished]:
            partly = corpus.partly()
            left = sum(partly.get(shard, 0) for shard in missing)
            progress.update(bar, completed=_pictures(finished) + left)
            make = partial(ShardWorker, corpus, load)
            if ray_address is None:
                make = partial(make, tell=advance)
            with closing(each_shard(make, missing, min(workers, len(missing)))) as results:
                for entry, problem in results:
                    if entry is None:
                        raise RunError(f"{problem}; the same command continues from here")
                    done = entry.rows + entry.bad - partly.get(entry.shard, 0)
                    fresh += done
                    if ray_address is not None:
                        advance(done)
            finished = _sound(program, corpus, finished)
            if fresh > ATTEMPTS * header.images:
                raise RunError(f"what is written to {corpus.store} does not stay as it is written")
    entries = corpus.complete()
    return Outcome(entries, earlier, fresh, time.monotonic() - began)


def _executor(ray_address: str | None) -> Executor[tuple[Entry | None, str]]:
    """Threads, or the Ray cluster at an address. Raises ExecutorError: Ray is not installed."""
    if ray_address is None:
        return in_threads
    try:
        from unified_embedding.corpus.ray_cluster import on_cluster
    except ModuleNotFoundError as error:
        raise ExecutorError(
            f"--ray needs {error.name}, which is not installed: pip install "
            "'unified-embedding[ray]'"
        ) from error
    return partial(on_cluster, ray_address)


def _sound(program: str, corpus: Corpus, checked: Mapping[int, Entry]) -> dict[int, Entry]:
    """The finished shards; those whose files are damaged or missing are forgotten, and told."""
    finished = corpus.finished()
    unchecked = [entry for shard, entry in finished.items() if checked.get(shard) != entry]
    damaged = corpus.damaged(unchecked)
    for entry in damaged:
        corpus.forget(finished.pop(entry.shard))
    if damaged:
        shards = ", ".join(str(entry.shard) for entry in damaged[:10])
        console.print(
            f"{program}: {len(damaged)} finished shards are damaged or missing and are done "
            f"again: {shards}{', ...' if len(damaged) > 10 else ''}",
            style="yellow",
        )
    return finished


def _pictures(entries: Mapping[int, Entry]) -> int:
    return sum(entry.rows + entry.bad for entry in entries.values())


class _Rate(ProgressColumn):
    """Pictures per second."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} pictures/s")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn("time left"),
        TimeRemainingColumn(),
        TimeElapsedColumn(),
        console=console,
    )
