"""Embed whole shards: what one Ray actor does."""

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Semaphore
from typing import Final

import numpy as np

from unified_embedding.client import Connection, EmbeddedEach
from unified_embedding.corpus.corpus import Corpus, Embedding, Entry
from unified_embedding.corpus.fleet import Fleet, RateLimiter
from unified_embedding.corpus.sources import Item, Reader, Unreadable
from unified_embedding.errors import ClientError, CorpusError
from unified_embedding.image import DEFAULT_LIMITS

# So that slow storage does not leave the servers without work.
READERS: Final = 8


@dataclass(frozen=True)
class Load:
    """How hard one worker may press the servers.

    Attributes:
        urls: gRPC addresses of the servers.
        batch: pictures per request.
        inflight: requests of this worker in flight at once.
        rate: pictures per second of this worker; 0 for no limit.
        timeout: seconds per request.
        patience: seconds to keep trying while no server answers.
        max_bytes: largest picture that is read.
        connection: TLS and token of the servers.
    """

    urls: tuple[str, ...]
    batch: int
    inflight: int
    rate: float
    timeout: float
    patience: float
    max_bytes: int = DEFAULT_LIMITS.max_bytes
    connection: Connection = field(default_factory=Connection)


class ShardWorker:
    """Reads, embeds and writes shards of one corpus, with its own connections."""

    def __init__(self, corpus: Corpus, load: Load, reader: Reader | None = None) -> None:
        self._corpus, self._load = corpus, load
        self._reader = reader or Reader(load.max_bytes)
        self._fleet = Fleet(
            load.urls, corpus.header.version, load.timeout, load.patience, load.connection
        )
        self._rate = RateLimiter(load.rate)
        self._ahead = max(load.inflight, READERS)
        self._pool = ThreadPoolExecutor(self._ahead, thread_name_prefix="embed")
        self._free = Semaphore(load.inflight)
        wanted = ("embedding", "code") if corpus.header.embeddings else ("code",)
        self._outputs = wanted

    def run(self, shard: int) -> tuple[Entry | None, str]:
        """Finish one shard. Returns its entry, or why it could not be finished.

        A shard that is finished already, as after a lost machine, is left alone.
        """
        try:
            entry = self._corpus.entry(shard)
            if entry is None:
                entry = self._corpus.write_shard(shard, self._answers(self._corpus.items(shard)))
        except (ClientError, CorpusError, OSError) as error:
            return None, str(error)
        except Exception as error:
            # Into this process' log: the user gets a sentence.
            traceback.print_exc()
            return None, f"shard {shard} failed by a mistake in the program ({error!r:.200})"
        return entry, ""

    def close(self) -> None:
        """Close the connections and end the threads."""
        self._fleet.close()
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def _answers(self, items: Sequence[Item]) -> list[tuple[Item, Embedding | str]]:
        """What came of each item; a bounded number of requests is read ahead."""
        answers: list[tuple[Item, Embedding | str]] = []
        waiting: deque[Future[list[tuple[Item, Embedding | str]]]] = deque()
        try:
            for chunk, contents in self._reader.chunks(items, self._load.batch):
                waiting.append(self._pool.submit(self._embed, chunk, contents))
                if len(waiting) == self._ahead:
                    answers += waiting.popleft().result()
            while waiting:
                answers += waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
        return answers

    def _embed(
        self, items: Sequence[Item], read: Callable[[], list[bytes | Unreadable]]
    ) -> list[tuple[Item, Embedding | str]]:
        self._rate.wait(len(items))
        contents = read()
        answers: dict[int, Embedding | str] = {
            row: data.reason for row, data in enumerate(contents) if isinstance(data, Unreadable)
        }
        there = [row for row, data in enumerate(contents) if isinstance(data, bytes)]
        images = [data for data in contents if isinstance(data, bytes)]
        if images:
            with self._free:
                answer = self._fleet.embed_each(images, self._outputs)
            answers.update(_by_row(answer, there))
        return [(item, answers[row]) for row, item in enumerate(items)]


def _by_row(answer: EmbeddedEach, rows: Sequence[int]) -> dict[int, Embedding | str]:
    good = answer.embedded
    found: dict[int, Embedding | str] = {
        rows[row]: error.reason for row, error in answer.errors.items()
    }
    for place, row in enumerate(answer.rows):
        if good.code is None:
            raise CorpusError("the server left out the code")
        stored = None if good.embedding is None else good.embedding[place].astype(np.float16)
        found[rows[row]] = Embedding(good.code[place], stored, good.version, good.engine)
    return found
