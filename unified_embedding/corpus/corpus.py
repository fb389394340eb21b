"""A back-filled corpus: a folder per embedder version, with shards that never change.

    OUT/<version>/corpus.json           what this corpus is: written first
                  plan.parquet          every picture in order
                  shards/00000.parquet  id, source, metadata, code[, embedding], version, engine
                  bad/00000.parquet     pictures that could not be embedded, and why
                  manifest/00000.json   the shard is finished: rows, sizes, digests
                  partial/00000.parquet what an interrupted run had of a shard; gone at the end
                  manifest.json         all of them, written last: the corpus is complete
                  quarantine.parquet    all bad pictures, written last
                  passed_over.json      what the search for pictures left out, by reason

No file holds a time or a host, so the same pictures and engine give the same bytes.
"""

import bisect
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unified_embedding.checkout import program
from unified_embedding.corpus.sources import Item, PassedOver
from unified_embedding.corpus.store import Store
from unified_embedding.errors import CorpusError

HEADER: Final = "corpus.json"
PLAN: Final = "plan.parquet"
MANIFEST: Final = "manifest.json"
QUARANTINE: Final = "quarantine.parquet"
PASSED_OVER: Final = "passed_over.json"
FOLDERS: Final = (".", "shards", "bad", "manifest", "partial")
BAD_SCHEMA: Final = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("reason", pa.string())]
)
_PARTIAL_SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("reason", pa.string()),
        ("code", pa.binary()),
        ("embedding", pa.binary()),
        ("version", pa.string()),
        ("engine", pa.string()),
    ]
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
        ("member", pa.string()),
        ("problem", pa.string()),
    ]
)
# A row group for each shard would make a footer that takes longer to read than the shards.
_PLAN_ROWS: Final = 65_536
_OF_SHARD: Final = re.compile(r"(\d{5,})\.(?:json|parquet)")
_CHECKERS: Final = 8
# Fields of a header that older ones lack; written only when they differ.
_LATER: Final = {"codes": True, "precision": "float16", "crop": ""}


@dataclass(frozen=True)
class CorpusHeader:
    """What a corpus is.

    Attributes:
        version: the embedder's version, of every row.
        dim: width D of the embedding.
        embeddings: whether embeddings are stored.
        inputs: what was asked for.
        images: pictures in the plan.
        shards: how many shards that makes.
        shard_size: pictures per shard; the last one holds the rest.
        codes: whether codes are stored.
        precision: type of the embeddings, float16 or float32.
        crop: the part of every picture that is embedded, as text; "" for all of it.
    """

    version: str
    dim: int
    embeddings: bool
    inputs: tuple[str, ...]
    images: int
    shards: int
    shard_size: int
    codes: bool = True
    precision: str = "float16"
    crop: str = ""


@dataclass(frozen=True)
class Embedding:
    """The answer for one good picture; what the corpus does not store is None.

    Attributes:
        code: packed sign bits, uint8 [D / 8].
        embedding: [D] in the corpus' precision.
        version: version that the server stated with this answer.
        engine: engine id that the server stated with this answer.
    """

    code: NDArray[np.uint8] | None
    embedding: NDArray[np.floating[Any]] | None
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
        self._plan: _Plan | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus, (self.store, self.header)

    @classmethod
    def open(cls, store: Store) -> "Corpus":
        """Read a begun corpus. Raises CorpusError."""
        try:
            raw = json.loads(store.read(HEADER))
            return cls(store, CorpusHeader(**{**raw, "inputs": tuple(raw["inputs"])}))
        except FileNotFoundError:
            raise CorpusError(
                f"{store} is not a corpus; make one: {program('backfill')} PICTURES --out OUT"
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
        items: Iterable[Item],
        shard_size: int,
        passed: PassedOver | None = None,
        codes: bool = True,
        precision: str = "float16",
        crop: str = "",
    ) -> "Corpus":
        """Write the plan and the header of a new corpus.

        Args:
            store: the new corpus' folder.
            version: the embedder's version.
            dim: width D of the embedding.
            embeddings: whether embeddings will be stored.
            inputs: what was asked for.
            items: the pictures, in order; nothing is written when this raises.
            shard_size: pictures per shard.
            passed: what the search for them left out.
            codes, precision, crop: see `CorpusHeader`.
        """
        images, rows = 0, max(1, _PLAN_ROWS // shard_size) * shard_size
        waiting = iter(items)
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            while (group := list(islice(waiting, rows))) or writer is None:
                if writer is None:
                    file = stack.enter_context(store.create(PLAN))
                    writer = stack.enter_context(pq.ParquetWriter(file, _PLAN_SCHEMA))
                table = pa.Table.from_pylist([asdict(item) for item in group], schema=_PLAN_SCHEMA)
                writer.write_table(table, row_group_size=rows)
                images += len(group)
        store.write(PASSED_OVER, (passed or PassedOver()).to_json().encode())
        shards = -(-images // shard_size)
        header = CorpusHeader(
            version,
            dim,
            embeddings,
            tuple(inputs),
            images,
            shards,
            shard_size,
            codes,
            precision,
            crop,
        )
        facts = asdict(header).items()
        told = {name: value for name, value in facts if _LATER.get(name, ...) != value}
        store.write(HEADER, _json(told))
        return cls(store, header)

    def items(self, shard: int) -> list[Item]:
        """The pictures of one shard, in order. Raises CorpusError."""
        first = shard * self.header.shard_size
        last = min(first + self.header.shard_size, self.header.images)
        try:
            self._plan = self._plan or _Plan(self.store)
            return [Item(**row) for row in self._plan.rows(first, last)]
        except (OSError, pa.ArrowException, TypeError, IndexError) as error:
            raise CorpusError(
                f"{self.store.place}/{PLAN} is damaged; remove {self.store.place} to start again"
            ) from error

    def passed_over(self) -> PassedOver:
        """What the search for pictures left out; nothing in a corpus of an earlier release."""
        try:
            return PassedOver.from_json(self.store.read(PASSED_OVER).decode())
        except FileNotFoundError:
            return PassedOver()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorpusError(f"{self.store.place}/{PASSED_OVER} is damaged ({error})") from error

    def finished(self) -> dict[int, Entry]:
        """The manifest so far: entries of all finished shards, in order.

        A file there that is no entry counts for nothing: its shard is not finished.
        """
        with ThreadPoolExecutor(_CHECKERS) as pool:
            entries = pool.map(self.entry, self._shards_in("manifest"))
            return {entry.shard: entry for entry in entries if entry is not None}

    def entry(self, shard: int) -> Entry | None:
        """The shard's entry when it is finished, else None."""
        try:
            raw = json.loads(self.store.read(_name("manifest", shard)))
            entry = Entry(**{**raw, "engines": tuple(raw["engines"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        counts = all(type(value) is int for value in (entry.shard, entry.rows, entry.bad))
        return entry if counts and entry.shard == shard else None

    def damaged(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those finished shards whose files are missing, or not what was written."""

        def is_damaged(entry: Entry) -> bool:
            try:
                self._verified("shards", entry)
                self._verified("bad", entry)
            except CorpusError:
                return True
            return False

        there = list(entries)
        with ThreadPoolExecutor(_CHECKERS) as pool:
            bad = pool.map(is_damaged, there)
            return [entry for entry, is_bad in zip(there, bad, strict=True) if is_bad]

    def forget(self, entry: Entry) -> None:
        """Count a finished shard as not finished, and so the corpus as not complete."""
        self.store.remove(MANIFEST)
        self.store.remove(_name("manifest", entry.shard))

    def begin_anew(self, shard: int) -> None:
        """Drop all that is known of a shard: its pictures have changed."""
        self.store.remove(MANIFEST)
        for folder in ("manifest", "partial"):
            self.store.remove(_name(folder, shard))

    def keep(self, shard: int, answers: Sequence[tuple[Item, Embedding | str]]) -> None:
        """Store what is there of a shard that could not be finished, for the next run."""
        rows = [
            {"id": item.id, "reason": answer}
            if isinstance(answer, str)
            else {
                "id": item.id,
                "code": None if answer.code is None else answer.code.tobytes(),
                "embedding": None if answer.embedding is None else answer.embedding.tobytes(),
                "version": answer.version,
                "engine": answer.engine,
            }
            for item, answer in answers
        ]
        if rows:
            table = pa.Table.from_pylist(rows, schema=_PARTIAL_SCHEMA)
            self.store.write(_name("partial", shard), _parquet(table, checked=True))

    def kept(self, shard: int) -> dict[str, Embedding | str]:
        """What `keep` stored of a shard, by id; nothing when that is missing or damaged."""
        name = _name("partial", shard)
        try:
            return dict(map(self._answer, _read(self.store.read(name)).to_pylist()))
        except (OSError, pa.ArrowException, ValueError, TypeError, KeyError):
            return {}

    def partly(self) -> dict[int, int]:
        """The shards of which `keep` stored a part, and how many pictures that is."""
        return {shard: len(self.kept(shard)) for shard in self._shards_in("partial")}

    def _shards_in(self, folder: str) -> list[int]:
        names = map(_OF_SHARD.fullmatch, self.store.sizes(folder))
        shards = sorted(int(name[1]) for name in names if name)
        return [shard for shard in shards if shard < self.header.shards]

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
            CorpusError: a shard is missing, or a file of bad pictures is damaged.
        """
        entries = list(self.finished().values())
        if len(entries) != self.header.shards:
            raise CorpusError(
                f"{len(entries)} of {self.header.shards} shards are finished; run the back-fill "
                "again to continue it"
            )
        with (
            self.store.create(QUARANTINE) as file,
            pq.ParquetWriter(file, BAD_SCHEMA, compression="zstd") as writer,
        ):
            for entry in entries:
                if entry.bad:
                    writer.write_table(self.bad(entry))
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
        for name in self.store.sizes("partial"):
            self.store.remove(f"partial/{name}")
        return entries

    def require_complete(self) -> list[Entry]:
        """The finished shards of a complete corpus. Raises CorpusError when it is not."""
        entries = list(self.finished().values()) if self.store.exists(MANIFEST) else []
        if len(entries) != self.header.shards:
            raise CorpusError(
                f"{self.store} is not complete; run the back-fill again to continue it"
            )
        return entries

    def table(self, entry: Entry) -> pa.Table:
        """A finished shard's good pictures. Raises CorpusError when it is damaged."""
        return _read(self._verified("shards", entry))

    def bad(self, entry: Entry) -> pa.Table:
        """A finished shard's bad pictures: id, source, reason. Raises CorpusError."""
        return _read(self._verified("bad", entry))

    def tables(self, entries: Iterable[Entry]) -> Iterator[pa.Table]:
        """The good pictures of all `entries`, shard by shard. Raises CorpusError."""
        for entry in entries:
            if entry.rows:
                yield self.table(entry)

    def _verified(self, folder: str, entry: Entry) -> bytes:
        """A file of a finished shard, b"" where there is none, checked against its digest."""
        digest = entry.shard_sha256 if folder == "shards" else entry.bad_sha256
        if not digest:
            return b""
        name = _name(folder, entry.shard)
        try:
            data = self.store.read(name)
        except FileNotFoundError:
            data = b""
        if _digest(data) != digest:
            raise CorpusError(
                f"{self.store.place}/{name} is {'damaged' if data else 'missing'}; run the "
                "back-fill again: it redoes this shard"
            )
        return data

    def _table(self, good: Sequence[tuple[Item, Embedding]]) -> pa.Table:
        columns: dict[str, Any] = {
            "id": pa.array([item.id for item, _ in good], pa.string()),
            "source": pa.array([item.source for item, _ in good], pa.string()),
            "metadata": pa.array([item.metadata for item, _ in good], pa.string()),
        }
        if self.header.codes:
            codes = np.stack([one.code for _, one in good if one.code is not None])
            columns["code"] = pa.Array.from_buffers(
                pa.binary(codes.shape[1]), len(good), [None, pa.py_buffer(codes.tobytes())]
            )
        if self.header.embeddings:
            rows = [one.embedding for _, one in good if one.embedding is not None]
            values = pa.array(np.stack(rows).ravel())
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, self.header.dim)
        columns["version"] = pa.array([one.version for _, one in good], pa.string())
        columns["engine"] = pa.array([one.engine for _, one in good], pa.string())
        return pa.table(columns)

    def _answer(self, row: dict[str, Any]) -> tuple[str, Embedding | str]:
        """A row of `keep`: the id, and what was answered."""
        if row["reason"] is not None:
            return row["id"], str(row["reason"])
        code, embedding = row["code"], row["embedding"]
        return row["id"], Embedding(
            None if code is None else np.frombuffer(code, np.uint8),
            None if embedding is None else np.frombuffer(embedding, self.header.precision),
            row["version"],
            row["engine"],
        )


class _Plan:
    """The plan, opened once; the row group that was read last is kept."""

    def __init__(self, store: Store) -> None:
        self._file = pq.ParquetFile(store.open(PLAN))
        facts = self._file.metadata
        self._starts = [0]
        for group in range(facts.num_row_groups):
            self._starts.append(self._starts[-1] + facts.row_group(group).num_rows)
        self._group = -1
        self._table = _PLAN_SCHEMA.empty_table()

    def rows(self, first: int, last: int) -> list[dict[str, Any]]:
        """The rows from `first` to `last`, which lie in one row group."""
        group = bisect.bisect_right(self._starts, first) - 1
        if group != self._group:
            self._group, self._table = group, self._file.read_row_group(group)
        start = self._starts[group]
        found: list[dict[str, Any]] = self._table.slice(first - start, last - first).to_pylist()
        return found


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


def _parquet(table: pa.Table, checked: bool = False) -> bytes:
    sink = io.BytesIO()
    # Codes look random: compressing them costs time and saves nothing.
    plain = {"code", "embedding"}
    compression = {
        name: "none" if name in plain else "zstd"
        for name in (_leaf(field) for field in table.schema)
    }
    pq.write_table(table, sink, compression=compression, write_page_checksum=checked)
    return sink.getvalue()


def _read(data: bytes) -> pa.Table:
    # Not by `pq.read_table`, which imports pyarrow's data sets first.
    return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
