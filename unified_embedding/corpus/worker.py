"""Embed whole shards: what one thread, or one actor on a cluster, does."""

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Semaphore
from typing import Final

from unified_embedding.client import OUTPUTS, Connection, EmbeddedEach
from unified_embedding.corpus.corpus import Corpus, Embedding, Entry
from unified_embedding.corpus.fleet import Fleet, RateLimiter
from unified_embedding.corpus.sources import Item, Reader, Unreadable
from unified_embedding.errors import ClientError, CorpusError, VersionMismatch
from unified_embedding.image import DEFAULT_LIMITS, parse_crops

# So that slow storage does not leave the servers without work.
READERS: Final = 8
# For the requests that are under way when a shard is given up, so that no answer is lost.
_LAST_SECONDS: Final = 10.0

_Answers = list[tuple[Item, Embedding | str]]


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

    def __init__(
        self,
        corpus: Corpus,
        load: Load,
        reader: Reader | None = None,
        tell: Callable[[int], None] = lambda pictures: None,
    ) -> None:
        """Connect; `tell` hears how many pictures were done, request by request."""
        self._corpus, self._load, self._tell = corpus, load, tell
        self._reader = reader or Reader(load.max_bytes)
        self._stopped = Event()
        self._fleet = Fleet(
            load.urls, load.timeout, load.patience, load.connection, sleep=self._stopped.wait
        )
        self._rate = RateLimiter(load.rate, sleep=self._stopped.wait)
        self._ahead = max(load.inflight, READERS)
        self._pool = ThreadPoolExecutor(self._ahead, thread_name_prefix="embed")
        self._free = Semaphore(load.inflight)
        header = corpus.header
        stored = dict(zip(OUTPUTS, (header.embeddings, header.codes), strict=True))
        self._outputs = [name for name in OUTPUTS if stored[name]]
        self._crop = parse_crops(header.crop, 1)[0] if header.crop else None

    def run(self, shard: int) -> tuple[Entry | None, str]:
        """Finish one shard. Returns its entry, or why it could not be finished.

        A shard that is finished already, as after a lost machine, is left alone. Of one that
        cannot be finished, the corpus keeps what was answered.
        """
        try:
            entry = self._corpus.entry(shard)
            if entry is None:
                entry = self._corpus.write_shard(shard, self._answers(shard))
        except (ClientError, CorpusError, OSError) as error:
            return None, str(error)
        except Exception as error:
            # Into this process' log: the user gets a sentence.
            traceback.print_exc()
            return None, f"shard {shard} failed by a mistake in the program ({error!r:.200})"
        return entry, ""

    def stop(self) -> None:
        """End the calls under way, and with them `run`."""
        self._stopped.set()
        self._fleet.close()

    def close(self) -> None:
        """Close the connections and end the threads."""
        self.stop()
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def _answers(self, shard: int) -> _Answers:
        """What came of each item; a bounded number of requests is read ahead."""
        items = self._corpus.items(shard)
        answers = self._corpus.kept(shard)
        left = [item for item in items if item.id not in answers]
        waiting: deque[Future[_Answers]] = deque()
        try:
            for chunk, contents in self._reader.chunks(left, self._load.batch):
                waiting.append(self._pool.submit(self._embed, chunk, contents))
                if len(waiting) == self._ahead:
                    answers.update(_by_id(waiting.popleft().result()))
            while waiting:
                answers.update(_by_id(waiting.popleft().result()))
        except BaseException:
            running = [future for future in waiting if not future.cancel()]
            wait(running, _LAST_SECONDS)
            for future in running:
                if future.done() and not future.exception():
                    answers.update(_by_id(future.result()))
            with suppress(OSError):
                there = [(item, answers[item.id]) for item in items if item.id in answers]
                self._corpus.keep(shard, there)
            raise
        return [(item, answers[item.id]) for item in items]

    def _embed(
        self, items: Sequence[Item], read: Callable[[], list[bytes | Unreadable]]
    ) -> _Answers:
        self._rate.wait(len(items))
        contents = read()
        answers: dict[int, Embedding | str] = {
            row: data.reason for row, data in enumerate(contents) if isinstance(data, Unreadable)
        }
        there = [row for row, data in enumerate(contents) if isinstance(data, bytes)]
        images = [data for data in contents if isinstance(data, bytes)]
        if images:
            with self._free:
                answer = self._fleet.embed_each(images, self._outputs, self._crop)
            answers.update(self._by_row(answer, there))
        self._tell(len(items))
        return [(item, answers[row]) for row, item in enumerate(items)]

    def _by_row(self, answer: EmbeddedEach, rows: Sequence[int]) -> dict[int, Embedding | str]:
        header, good = self._corpus.header, answer.embedded
        if good.version != header.version:
            raise VersionMismatch(
                f"the server's embedder version changed from {header.version} to {good.version} "
                "during the run; vectors of both must not be mixed"
            )
        found: dict[int, Embedding | str] = {
            rows[row]: str(error).removeprefix(f"image {row}: ")
            for row, error in answer.errors.items()
        }
        for place, row in enumerate(answer.rows):
            code = None if good.code is None else good.code[place]
            stored = None
            if good.embedding is not None:
                stored = good.embedding[place].astype(header.precision)
            found[rows[row]] = Embedding(code, stored, good.version, good.engine)
        return found


def _by_id(answers: _Answers) -> dict[str, Embedding | str]:
    return {item.id: answer for item, answer in answers}
