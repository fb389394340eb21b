"""How hard one worker presses a server, and that it reads ahead of it."""

import threading
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra `search` is not installed")

from _corpus import Corpus
from _shard_worker import READERS, Load, ShardWorker
from _sources import find
from _store import Store
from kserve_peer import DIM, VERSION, Peer, serving, slowly


@pytest.mark.parametrize("inflight", [1, 3])
def test_requests_in_flight_are_bounded_while_pictures_are_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inflight: int
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(24):
        (pictures / f"{number:02d}.jpg").write_bytes(b"picture %d" % number)
    import _shard_worker

    read, ahead = _shard_worker.read, []
    together = threading.Barrier(READERS)

    def read_together(items: object) -> object:
        # Passes only when that many read at once, whatever the server does.
        together.wait(timeout=60)
        ahead.append(items)
        return read(items)  # type: ignore[arg-type]

    monkeypatch.setattr(_shard_worker, "read", read_together)
    items = list(find([str(pictures)], None, None))
    store = Store(str(tmp_path / "out")).within(VERSION)
    corpus = Corpus.begin(store, VERSION, DIM, False, [str(pictures)], items, 24)
    with serving(Peer(respond=slowly(0.05))) as peer:
        load = Load((peer.url,), batch=1, inflight=inflight, rate=0, timeout=60, patience=60)
        worker = ShardWorker(corpus, load)
        entry, problem = worker.run(0)
        worker.close()
    assert problem == ""
    assert entry is not None
    assert entry.rows == 24
    assert peer.most_at_once == inflight
    assert len(ahead) == 24
