"""How hard one worker presses a server, and that it reads ahead of it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra `client` is not installed")

from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, serving, slowly

from unified_embedding.corpus.corpus import Corpus, Embedding
from unified_embedding.corpus.sources import Item, Reader, Unreadable, find
from unified_embedding.corpus.store import Store
from unified_embedding.corpus.worker import READERS, Load, ShardWorker

Contents = Callable[[], list[bytes | Unreadable]]


class TogetherReader(Reader):
    """Reads only when that many read at once, whatever the server does."""

    def __init__(self) -> None:
        super().__init__()
        self.together = threading.Barrier(READERS)
        self.ahead: list[int] = []

    def chunks(self, items: Sequence[Item], size: int) -> Iterator[tuple[Sequence[Item], Contents]]:
        for chunk, contents in super().chunks(items, size):
            yield chunk, partial(self.wait, contents)

    def wait(self, contents: Contents) -> list[bytes | Unreadable]:
        self.together.wait(timeout=60)
        self.ahead.append(1)
        return contents()


@pytest.mark.parametrize("inflight", [1, 3])
def test_requests_in_flight_are_bounded_while_pictures_are_read_ahead(
    tmp_path: Path, inflight: int
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(24):
        (pictures / f"{number:02d}.jpg").write_bytes(b"picture %d" % number)
    store = Store(str(tmp_path / "out")).within(VERSION)
    corpus = Corpus.begin(store, VERSION, DIM, False, ["p"], find([str(pictures)]), 24)
    reader = TogetherReader()
    with serving(Peer(respond=slowly(0.05))) as peer:
        load = Load((peer.url,), batch=1, inflight=inflight, rate=0, timeout=60, patience=60)
        worker = ShardWorker(corpus, load, reader)
        entry, problem = worker.run(0)
        worker.close()
    assert problem == ""
    assert entry is not None
    assert entry.rows == 24
    assert peer.most_at_once == inflight
    assert len(reader.ahead) == 24


def test_a_mistake_in_the_program_is_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(Reader):
        def chunks(
            self, items: Sequence[Item], size: int
        ) -> Iterator[tuple[Sequence[Item], Contents]]:
            raise ZeroDivisionError("planted")

    (tmp_path / "a.jpg").write_bytes(b"picture 1")
    store = Store(str(tmp_path / "out")).within(VERSION)
    corpus = Corpus.begin(store, VERSION, DIM, False, ["p"], find([str(tmp_path / "a.jpg")]), 24)
    load = Load(("127.0.0.1:1",), batch=1, inflight=1, rate=0, timeout=60, patience=60)
    worker = ShardWorker(corpus, load, Broken())
    entry, problem = worker.run(0)
    worker.close()
    assert entry is None
    assert "shard 0 failed by a mistake in the program (ZeroDivisionError('planted')" in problem
    assert "Traceback" not in problem
    # The traceback is in the worker's log.
    assert "planted" in capfd.readouterr().err


def test_an_answer_of_another_version_ends_the_shard_and_is_not_kept(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        (pictures / f"{number:02d}.jpg").write_bytes(b"picture %d" % number)
    store = Store(str(tmp_path / "out")).within(VERSION)
    corpus = Corpus.begin(store, VERSION, DIM, False, ["p"], find([str(pictures)]), 24)
    other = "ffffffffffff"
    peer = Peer(stamp=lambda number: f"{VERSION if number < 3 else other} {ENGINE}")
    done: list[int] = []
    with serving(peer):
        load = Load((peer.url,), batch=4, inflight=1, rate=0, timeout=60, patience=60)
        worker = ShardWorker(corpus, load, tell=done.append)
        entry, problem = worker.run(0)
        worker.close()
    assert entry is None
    assert f"version changed from {VERSION} to {other}" in problem
    assert done == [4, 4]
    sent = [image for request in peer.requests[:2] for image in request.images]
    truth = dict(zip(sent, codes(sent), strict=True))
    kept = corpus.kept(0)
    assert len(kept) == 8
    for name, answer in kept.items():
        assert isinstance(answer, Embedding)
        assert answer.code is not None
        assert answer.code.tolist() == truth[Path(name).read_bytes()].tolist()
