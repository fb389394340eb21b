"""One file of vectors, filled by way of a corpus that stands beside it until it is whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unified_embedding.client import OUTPUTS, ServerInfo
from unified_embedding.corpus.corpus import Corpus, Entry
from unified_embedding.corpus.places import is_uri, local_path
from unified_embedding.corpus.sources import Item
from unified_embedding.corpus.store import Store
from unified_embedding.corpus.vector_files import Rows, write_rows
from unified_embedding.errors import CorpusError

SHARD_SIZE: Final = 512
_RUN: Final = "run.json"


def begin(
    out: Path,
    server: ServerInfo,
    outputs: Sequence[str],
    crop: str,
    items: Sequence[Item],
    restart: bool,
) -> tuple[Corpus, str]:
    """The corpus in the folder OUT.parts: a new one, or that of an interrupted run.

    Shards in which a picture came, went or changed its size or modification time are done anew.

    Args:
        out: the file of vectors.
        server: what runs.
        outputs: the columns of vectors that were asked for.
        crop: the part of every picture, as text; "" for all of it.
        items: the pictures.
        restart: whether an interrupted run is dropped.

    Returns:
        The corpus, and the id of the engine that began it.

    Raises:
        CorpusError: it was begun with other settings. Vectors of two embedder versions, or of
            two crops, must not end up in one file.
    """
    folder = out.with_name(f"{out.name}.parts")
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    store = Store(str(folder))
    settings = {"version": server.version, "outputs": ",".join(outputs), "crop": crop}
    engine, begun, marks = _begun(store, server.engine, settings)
    changed = [
        f"{name} {begun.get(name)!r} (now {value!r})"
        for name, value in settings.items()
        if begun.get(name) != value
    ]
    if changed:
        raise CorpusError(
            f"{folder} holds an interrupted run with {', '.join(changed)}. Rows of both must "
            "not be mixed in one file: go back to the earlier value to continue that run, or "
            "give --restart to drop it"
        )
    stored = [name in outputs for name in OUTPUTS]
    corpus = Corpus.begin(
        store,
        server.version,
        server.dim,
        stored[0],
        [str(out)],
        items,
        SHARD_SIZE,
        codes=stored[1],
        precision="float32",
        crop=crop,
    )
    starts = range(0, len(items), SHARD_SIZE)
    now = [_mark(items[start : start + SHARD_SIZE]) for start in starts]
    for shard, mark in enumerate(now):
        if shard >= len(marks) or marks[shard] != mark:
            corpus.begin_anew(shard)
    run = {"engine": engine, "settings": settings, "marks": now}
    store.write(_RUN, json.dumps(run).encode())
    return corpus, engine


def _begun(
    store: Store, engine: str, settings: Mapping[str, str]
) -> tuple[str, Mapping[str, str], list[str]]:
    """Engine, settings and marks of the run that is there, or of a new one."""
    try:
        run = json.loads(store.read(_RUN))
        # Earlier releases kept their parts in another form, without marks.
        return run["engine"], run["settings"], run.get("marks", [])
    except FileNotFoundError:
        return engine, settings, []
    except (ValueError, TypeError, KeyError) as error:
        raise CorpusError(
            f"{store.place}/{_RUN} is damaged ({error}); give --restart to begin anew"
        ) from error


def _mark(items: Sequence[Item]) -> str:
    """Digest of names, sizes and modification times; another one means that a file changed."""
    digest = hashlib.sha256()
    for item in items:
        state = (item.id, item.place, -1, -1)
        if not is_uri(item.place):
            try:
                status = os.stat(local_path(item.place))
                state = (item.id, item.place, status.st_size, status.st_mtime_ns)
            except OSError:
                pass
        digest.update(repr(state).encode())
    return digest.hexdigest()


def skipped(corpus: Corpus, entries: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Id and reason of each picture that has no row."""
    for entry in entries:
        if entry.bad:
            for row in corpus.bad(entry).to_pylist():
                yield row["id"], row["reason"]


def finish(out: Path, corpus: Corpus, entries: Sequence[Entry]) -> None:
    """Write the file, if it has a row, and remove the complete corpus beside it."""
    if any(entry.rows for entry in entries):
        write_rows(out, map(_rows, corpus.tables(entries)))
    shutil.rmtree(corpus.store.place)


def _rows(table: pa.Table) -> Rows:
    count = len(table)

    def text(name: str) -> NDArray[np.str_]:
        return np.array(table[name].to_pylist(), dtype=np.str_)

    embedding = code = None
    if "embedding" in table.column_names:
        values = table["embedding"].combine_chunks().flatten()
        embedding = values.to_numpy().reshape(count, -1)
    if "code" in table.column_names:
        data = b"".join(table["code"].to_pylist())
        code = np.frombuffer(data, np.uint8).reshape(count, -1)
    return Rows(text("id"), embedding, code, text("version"), text("engine"))
