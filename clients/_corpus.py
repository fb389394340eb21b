"""A back-filled corpus: a folder per embedder version, with shards that never change.

    OUT/<version>/corpus.json           what this corpus is: written first
                  plan.parquet          every picture in order, one row group per shard
                  shards/00000.parquet  id, source, metadata, code[, embedding], version, engine
                  bad/00000.parquet     pictures that could not be embedded, and why
                  manifest/00000.json   the shard is finished: rows, sizes, digests
                  manifest.json         all of them, written last: the corpus is complete
                  quarantine.parquet    all bad pictures, written last

No file holds a time or a host, so the same pictures and engine give the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _sources import Item
from _store import Store
from numpy.typing import NDArray

HEADER: Final = "corpus.json"
PLAN: Final = "plan.parquet"
MANIFEST: Final = "manifest.json"
QUARANTINE: Final = "quarantine.parquet"
BAD_SCHEMA: Final = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("reason", pa.string())]
)
_PLAN_SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("place", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("column", pa.string()),
        ("metadata", pa.string()),
    ]
)


class CorpusError(Exception):
    """A corpus cannot be read or continued; the message says why and what to do."""


@dataclass(frozen=True)
class CorpusHeader:
    """What a corpus is.

    Attributes:
        version: the embedder's version, of every row.
        dim: width D of the embedding.
        embeddings: whether float16 embeddings are stored beside the codes.
        inputs: what was asked for.
        images: pictures in the plan.
        shards: row groups of the plan.
        shard_size: pictures per shard; the last one holds the rest.
    """

    version: str
    dim: int
    embeddings: bool
    inputs: tuple[str, ...]
    images: int
    shards: int
    shard_size: int


@dataclass(frozen=True)
class Embedding:
    """The answer for one good picture.

    Attributes:
        code: packed sign bits, uint8 [D / 8].
        embedding: float16 [D], or None.
        version: version that the server stated with this answer.
        engine: engine id that the server stated with this answer.
    """

    code: NDArray[np.uint8]
    embedding: NDArray[np.float16] | None
    version: str
    engine: str


@dataclass(frozen=True)
class Entry:
    """One finished shard in the manifest. A digest is a SHA-256 in hex, "" without a file."""

    shard: int
    rows: int
    bad: int
    engines: tuple[str, ...]
    shard_sha256: str
    bad_sha256: str


class Corpus:
    """One version's folder. Objects of it can be sent to other machines."""

    def __init__(self, store: Store, header: CorpusHeader) -> None:
        self.store = store
        self.header = header

    @classmethod
    def open(cls, store: Store) -> "Corpus":
        """Read a begun corpus. Raises CorpusError."""
        try:
            raw = json.loads(store.read(HEADER))
            return cls(store, CorpusHeader(**{**raw, "inputs": tuple(raw["inputs"])}))
        except FileNotFoundError:
            raise CorpusError(
                f"{store} is not a corpus; make one: python clients/backfill.py PICTURES --out OUT"
            ) from None
        except (OSError, TypeError, KeyError, ValueError) as error:
            raise CorpusError(f"{store.place}/{HEADER} is damaged ({error})") from error

    @classmethod
    def begin(
        cls,
        store: Store,
        version: str,
        dim: int,
        embeddings: bool,
        inputs: Sequence[str],
        items: Sequence[Item],
        shard_size: int,
    ) -> "Corpus":
        """Write the plan and the header of a new corpus."""
        shards = -(-len(items) // shard_size)
        plan = io.BytesIO()
        with pq.ParquetWriter(plan, _PLAN_SCHEMA) as writer:
            for first in range(0, len(items), shard_size):
                rows = [asdict(item) for item in items[first : first + shard_size]]
                writer.write_table(pa.Table.from_pylist(rows, schema=_PLAN_SCHEMA))
        store.write(PLAN, plan.getvalue())
        header = CorpusHeader(
            version, dim, embeddings, tuple(inputs), len(items), shards, shard_size
        )
        store.write(HEADER, _json(asdict(header)))
        return cls(store, header)

    def items(self, shard: int) -> list[Item]:
        """The pictures of one shard, in order."""
        with self.store.open(PLAN) as file:
            table = pq.ParquetFile(file).read_row_group(shard)
        return [Item(**row) for row in table.to_pylist()]

    def finished(self) -> dict[int, Entry]:
        """The manifest so far: entries of all finished shards."""
        names = self.store.sizes("manifest")
        return {int(name[:5]): self._entry(int(name[:5])) for name in sorted(names)}

    def entry(self, shard: int) -> Entry | None:
        """The shard's entry when it is finished, else None."""
        return self._entry(shard) if self.store.exists(_name("manifest", shard)) else None

    def write_shard(self, shard: int, answers: Sequence[tuple[Item, Embedding | str]]) -> Entry:
        """Write a shard: per picture its vectors, or the reason why there are none.

        The manifest entry comes last: what it names is whole.

        Raises:
            CorpusError: an answer is of another version; nothing is written.
        """
        good = [(item, one) for item, one in answers if isinstance(one, Embedding)]
        bad = [(item, one) for item, one in answers if isinstance(one, str)]
        versions = {one.version for _, one in good} - {self.header.version}
        if versions:
            raise CorpusError(
                f"the server changed from version {self.header.version} to "
                f"{', '.join(sorted(versions))} within shard {shard}, which was not written; "
                "the same command starts a new corpus for the new version"
            )
        data = _parquet(self._table(good)) if good else b""
        told = _parquet(_bad_table(bad)) if bad else b""
        if good:
            self.store.write(_name("shards", shard), data)
        if bad:
            self.store.write(_name("bad", shard), told)
        engines = tuple(sorted({one.engine for _, one in good}))
        entry = Entry(shard, len(good), len(bad), engines, _digest(data), _digest(told))
        self.store.write(_name("manifest", shard), _json(asdict(entry)))
        return entry

    def complete(self) -> list[Entry]:
        """Write manifest.json and quarantine.parquet from the finished shards.

        Raises:
            CorpusError: a shard is missing.
        """
        entries = list(self.finished().values())
        if len(entries) != self.header.shards:
            raise CorpusError(
                f"{len(entries)} of {self.header.shards} shards are finished; run the back-fill "
                "again to continue it"
            )
        bad = [self.bad(entry.shard) for entry in entries if entry.bad]
        self.store.write(QUARANTINE, _parquet(pa.concat_tables([BAD_SCHEMA.empty_table(), *bad])))
        self.store.write(
            MANIFEST,
            _json(
                {
                    "version": self.header.version,
                    "rows": sum(entry.rows for entry in entries),
                    "bad": sum(entry.bad for entry in entries),
                    "shards": [asdict(entry) for entry in entries],
                }
            ),
        )
        return entries

    def require_complete(self) -> list[Entry]:
        """The finished shards of a complete corpus. Raises CorpusError when it is not."""
        if not self.store.exists(MANIFEST):
            raise CorpusError(
                f"{self.store} is not complete; run the back-fill again to continue it"
            )
        return list(self.finished().values())

    def table(self, shard: int) -> pa.Table:
        """A finished shard's good pictures."""
        return self._read(_name("shards", shard))

    def bad(self, shard: int) -> pa.Table:
        """A finished shard's bad pictures: id, source, reason."""
        return self._read(_name("bad", shard))

    def tables(self, entries: Iterable[Entry]) -> Iterator[pa.Table]:
        """The good pictures of all `entries`, shard by shard."""
        for entry in entries:
            if entry.rows:
                yield self.table(entry.shard)

    def _read(self, name: str) -> pa.Table:
        with self.store.open(name) as file:
            return pq.ParquetFile(file).read()

    def _entry(self, shard: int) -> Entry:
        raw = json.loads(self.store.read(_name("manifest", shard)))
        return Entry(**{**raw, "engines": tuple(raw["engines"])})

    def _table(self, good: Sequence[tuple[Item, Embedding]]) -> pa.Table:
        codes = np.stack([one.code for _, one in good])
        columns: dict[str, Any] = {
            "id": pa.array([item.id for item, _ in good], pa.string()),
            "source": pa.array([item.source for item, _ in good], pa.string()),
            "metadata": pa.array([item.metadata for item, _ in good], pa.string()),
            "code": pa.Array.from_buffers(
                pa.binary(codes.shape[1]), len(good), [None, pa.py_buffer(codes.tobytes())]
            ),
        }
        if self.header.embeddings:
            rows = [one.embedding for _, one in good if one.embedding is not None]
            values = pa.array(np.stack(rows).ravel(), pa.float16())
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, self.header.dim)
        columns["version"] = pa.array([one.version for _, one in good], pa.string())
        columns["engine"] = pa.array([one.engine for _, one in good], pa.string())
        return pa.table(columns)


def choose(store: Store, version: str | None = None) -> Corpus:
    """The corpus of `version` in a back-fill's output, or the only one there.

    Raises:
        CorpusError: none, or several and no version given.
    """
    if store.exists(HEADER):
        return Corpus.open(store)
    versions = [name for name in store.folders() if store.exists(f"{name}/{HEADER}")]
    if version is None and len(versions) > 1:
        raise CorpusError(f"{store} holds the versions {', '.join(versions)}; choose by --version")
    if version is not None and version not in versions:
        raise CorpusError(f"{store} holds no corpus of version {version}, only {versions}")
    return Corpus.open(store.within(version or versions[0]) if versions else store)


def _bad_table(bad: Sequence[tuple[Item, str]]) -> pa.Table:
    rows = [{"id": item.id, "source": item.source, "reason": why} for item, why in bad]
    return pa.Table.from_pylist(rows, schema=BAD_SCHEMA)


def _name(folder: str, shard: int) -> str:
    return f"{folder}/{shard:05d}.{'json' if folder == 'manifest' else 'parquet'}"


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    # Codes look random: compressing them costs time and saves nothing.
    plain = {"code", "embedding"}
    compression = {
        name: "none" if name in plain else "zstd"
        for name in (_leaf(field) for field in table.schema)
    }
    pq.write_table(table, sink, compression=compression)
    return sink.getvalue()


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
