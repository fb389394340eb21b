"""Embed whole shards: what one Ray actor does."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Semaphore
from typing import Final

import numpy as np
from _corpus import Corpus, CorpusError, Embedding, Entry
from _fleet import Fleet, Pace
from _sources import Item, read

from unified_embedding.client import EmbeddedEach
from unified_embedding.errors import ClientError

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
    """

    urls: tuple[str, ...]
    batch: int
    inflight: int
    rate: float
    timeout: float
    patience: float


class ShardWorker:
    """Reads, embeds and writes shards of one corpus, with its own connections."""

    def __init__(self, corpus: Corpus, load: Load) -> None:
        self._corpus, self._load = corpus, load
        self._fleet = Fleet(load.urls, corpus.header.version, load.timeout, load.patience)
        self._pace = Pace(load.rate)
        self._pool = ThreadPoolExecutor(max(load.inflight, READERS), thread_name_prefix="embed")
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
                items = self._corpus.items(shard)
                size = self._load.batch
                chunks = [items[first : first + size] for first in range(0, len(items), size)]
                answers = [one for part in self._pool.map(self._embed, chunks) for one in part]
                entry = self._corpus.write_shard(shard, answers)
        except (ClientError, CorpusError, OSError) as error:
            return None, str(error)
        return entry, ""

    def close(self) -> None:
        """Close the connections and end the threads."""
        self._fleet.close()
        self._pool.shutdown(cancel_futures=True)

    def _embed(self, items: Sequence[Item]) -> list[tuple[Item, Embedding | str]]:
        self._pace.wait(len(items))
        contents = read(items)
        answers: dict[int, Embedding | str] = {
            row: f"cannot be read ({data})"
            for row, data in enumerate(contents)
            if isinstance(data, OSError)
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
        rows[row]: str(error).removeprefix(f"image {row}: ") for row, error in answer.errors.items()
    }
    for place, row in enumerate(answer.rows):
        if good.code is None:
            raise CorpusError("the server left out the code")
        stored = None if good.embedding is None else good.embedding[place].astype(np.float16)
        found[rows[row]] = Embedding(good.code[place], stored, good.version, good.engine)
    return found
