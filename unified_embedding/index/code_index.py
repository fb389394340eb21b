"""The index: create or open it, add, delete, search, save."""

import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unified_embedding.codes import hamming
from unified_embedding.errors import CodeIndexError, EngineWarning, IndexMismatch, shown
from unified_embedding.index import chance, checksums
from unified_embedding.index.checks import Batch, Metadata, check_codes, check_rerank, check_rows
from unified_embedding.index.header import Header, Settings
from unified_embedding.index.matches import Matches, Rerank, Snapshot, by_embedding, rescored
from unified_embedding.index.records import ID, Record
from unified_embedding.index.saving import carried, locked, next_generation, write_living
from unified_embedding.index.segments import Base, Tail, as_records, cast_to
from unified_embedding.index.writer import Progress, Writer
from unified_embedding.origin import Origin
from unified_embedding.paths import StrPath

if TYPE_CHECKING:
    from unified_embedding.index.monitor import RecallMonitor

_LEAST_CANDIDATES: Final = 100
_ID_BLOCK: Final = 1 << 20
# Each is lost only to a save that another process ended meanwhile.
_OPENINGS: Final = 20


@dataclass(frozen=True)
class Stored:
    """One row of an index.

    Attributes:
        id: the row's id.
        code: uint8 [D / 8].
        embedding: float32 [D] as stored in float16, or None when the index holds none.
        metadata: the row's other columns.
    """

    id: str
    code: NDArray[np.uint8]
    embedding: NDArray[np.float32] | None
    metadata: Record


class CodeIndex:
    """Packed codes with ids and metadata, in a folder.

    Searches may run in any number of threads while others add, delete and save. A search sees
    every addition and deletion that returned before it began. Additions and deletions last
    beyond the process once `save` has returned.

    Attributes:
        monitor: when set, is offered a sample of the approximate searches.
    """

    monitor: "RecallMonitor | None" = None

    def __init__(self, folder: Path, header: Header, base: Base) -> None:
        """Hold a saved generation; use `create`, `build` or `open`."""
        self._folder = folder
        self._header = header
        self._segments = (base, Tail(header.dim, header.embeddings))
        self._writing = threading.Lock()
        self._saving = threading.Lock()
        self._disagreement: dict[str, float] = {}
        self._warned: set[str] = set()

    @classmethod
    def create(
        cls,
        folder: StrPath,
        origin: Origin,
        dim: int,
        *,
        settings: Settings = Settings(),  # noqa: B008 - frozen
        embeddings: bool = False,
    ) -> "CodeIndex":
        """Make an empty index in a new or empty folder.

        Raises:
            CodeIndexError: something is there already.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()):
            raise CodeIndexError(f"{folder} is not empty; open it, or name a new folder")
        return cls.build(folder, (), origin, dim, settings=settings, embeddings=embeddings)

    @classmethod
    def build(
        cls,
        folder: StrPath,
        batches: Iterable[Batch],
        origin: Origin,
        dim: int,
        *,
        settings: Settings = Settings(),  # noqa: B008 - frozen
        embeddings: bool = False,
        roots: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> "CodeIndex":
        """Write an index of all `batches` in one pass, without holding them in memory.

        An index that stands in `folder` is replaced in one step when the new one is whole.
        `roots` are the folders and files that the rows' pictures lie in, kept in the header.

        Raises:
            CodeIndexError: bad rows (ids that occur twice, shapes), `folder` holds other things,
                or the disk is full.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CodeIndexError(f"{folder} cannot be made ({error})") from error
        with locked(folder):
            generation = next_generation(folder)
            header = Header(origin, dim, settings, embeddings, 0, generation, tuple(roots))
            schema: pa.Schema | None = None
            with Writer(folder, header, progress) as writer:
                for batch in batches:
                    table = cast_to(as_records(batch.ids, batch.metadata), schema)
                    schema = schema or table.schema
                    stored = check_rows(header, batch)
                    writer.append(batch.codes, table, stored)
                return cls(folder, *writer.commit())

    @classmethod
    def open(
        cls,
        folder: StrPath,
        *,
        nprobe: int | None = None,
        ef_search: int | None = None,
        check: bool | None = None,
    ) -> "CodeIndex":
        """Map a saved index.

        Args:
            folder: where it is saved.
            nprobe: replaces the stored search effort of "ivf".
            ef_search: replaces the stored search effort of "hnsw".
            check: whether every file is compared with its SHA-256 in the header first, about a
                second a gigabyte. By default all are but codes and embeddings of more than
                256 MB; False trusts the disk. An index of format 1 has nothing to compare with.

        Raises:
            CodeIndexError: not an index, damaged, or of another format.
        """
        folder = Path(folder)
        for _ in range(_OPENINGS):
            header = Header.read(folder)
            settings = replace(
                header.settings,
                nprobe=nprobe or header.settings.nprobe,
                ef_search=ef_search or header.settings.ef_search,
            )
            used = replace(header, settings=settings)
            try:
                return cls(folder, used, Base(folder, used, check))
            except (OSError, CodeIndexError) as error:
                # A save in another process may have replaced the generation meanwhile.
                if Header.read(folder) != header:
                    continue
                if isinstance(error, FileNotFoundError):
                    raise CodeIndexError(
                        f"{error.filename} is missing; {checksums.REMEDY}"
                    ) from error
                if isinstance(error, OSError):
                    raise CodeIndexError(f"{folder} cannot be read ({error})") from error
                raise
        raise CodeIndexError(f"{folder} is saved faster than it can be opened; try again")

    @property
    def header(self) -> Header:
        """What the saved base holds; additions and deletions since are not counted in it."""
        return self._header

    @property
    def folder(self) -> Path:
        """Where the index is saved."""
        return self._folder

    def __len__(self) -> int:
        return self.snapshot().living

    def __contains__(self, name: object) -> bool:
        base, tail = self._segments
        return isinstance(name, str) and (name in tail.row_of or base.find([name])[0] >= 0)

    def lacks(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that are not in the index."""
        base, tail = self._segments
        rows = base.find(ids).tolist()
        return [
            name for name, row in zip(ids, rows, strict=True) if row < 0 and name not in tail.row_of
        ]

    def ids(self) -> Iterator[list[str]]:
        """The ids of all rows in their order, in blocks that fit in memory."""
        snapshot = self.snapshot()
        for part in (snapshot.base, snapshot.tail):
            for first in range(0, len(part), _ID_BLOCK):
                block = part.records.living(part.alive[: first + _ID_BLOCK][: len(part)], first)
                yield block.column(ID).to_pylist()

    def snapshot(self, where: str | None = None) -> Snapshot:
        """The rows as they are now, for searches that must see the same ones.

        Raises:
            CodeIndexError: `where` is no condition on these rows; see `index.where`.
        """
        base, tail = self._segments
        snapshot = Snapshot(base.part(), tail.part())
        return snapshot if where is None else snapshot.where(where)

    def add(
        self,
        ids: Sequence[str],
        codes: NDArray[np.uint8],
        origin: Origin,
        *,
        metadata: Metadata = None,
        embeddings: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        """Add n rows; all of them or, on an error, none.

        Args:
            ids: n texts that are not in the index.
            codes: uint8 [n, D / 8].
            origin: who computed the codes.
            metadata: columns of n values; the same columns in every call.
            embeddings: float [n, D], required if and only if the index stores them.

        Raises:
            IndexMismatch: codes of another version or width.
            CodeIndexError: an id is there already, or shapes and columns do not fit.
        """
        batch = Batch(ids, codes, metadata, embeddings)
        self._check_version(origin)
        self._tell_engine(origin)
        stored = check_rows(self._header, batch)
        table = as_records(ids, metadata)
        with self._writing:
            base, tail = self._segments
            present = [name for name in ids if name in tail.row_of]
            present += [ids[row] for row in np.flatnonzero(base.find(ids) >= 0)]
            if present:
                raise CodeIndexError(f"id {shown(present[0])} is in the index; delete it first")
            table = cast_to(table, base.schema or tail.schema)
            if len(ids):
                tail.append(codes, stored, table)

    def delete(self, ids: Iterable[str]) -> int:
        """Delete rows by id; returns how many there were. Unknown ids are no error."""
        wanted = list(dict.fromkeys(ids))
        with self._writing:
            base, tail = self._segments
            count = tail.kill(wanted)
            rows = base.find(wanted)
            base.kill(rows[rows >= 0])
            return count + int((rows >= 0).sum())

    def search(
        self,
        query: NDArray[np.uint8],
        origin: Origin,
        *,
        k: int = 10,
        embedding: NDArray[np.floating[Any]] | None = None,
        rerank: Rerank | None = None,
        candidates: int | None = None,
        exact: bool = False,
        where: str | None = None,
    ) -> Matches:
        """The k nearest rows of each query, by Hamming distance, then insertion order.

        Args:
            query: codes uint8 [N, D / 8].
            origin: who computed the query; `Origin.may_search` decides.
            k: results per query; fewer come back when the index holds fewer.
            embedding: float queries [N, D], needed to re-rank.
            rerank: "asymmetric" orders the candidates by the float query against their signs,
                "embedding" by its cosine with their stored embeddings.
            candidates: how many nearest codes are re-ranked; 4 k, at least 100, unless given.
            exact: compare every code, whatever the kind of the index.
            where: a condition on metadata, such as "price < 20" (grammar: `index.where`). Only
                rows that fulfil it are searched, and exactly, whatever the kind of the index.

        Raises:
            IndexMismatch: a query of another version or width.
            CodeIndexError: k < 1, re-ranking without what it needs, or a bad condition.
        """
        if k < 1:
            raise CodeIndexError(f"k is {k}; ask for at least 1 result")
        self._check_query(origin)
        self._tell_engine(origin)
        check_codes(self._header, query)
        snapshot = self.snapshot(where)
        if rerank is None:
            found = snapshot.nearest(query, k, approximate=not exact)
            matches = Matches(found.distances, found.rows, None, snapshot)
            if self.monitor is not None and not exact and where is None:
                self.monitor.offer(query, matches)
            return matches
        unit = check_rerank(self._header, len(query), embedding, rerank)
        wanted = max(k, candidates or max(4 * k, _LEAST_CANDIDATES))
        found = snapshot.nearest(query, wanted, approximate=not exact)
        return rescored(snapshot, found, unit, rerank, k)

    def save(
        self,
        settings: Settings | None = None,
        progress: Progress | None = None,
        roots: Sequence[str] = (),
    ) -> None:
        """Write the living rows as a new base, and go on with it.

        Searches, additions and deletions continue meanwhile; those that arrive after the start
        are not in the saved files. `settings` changes the kind of the index; `roots` are further
        folders that pictures of its rows lie in.

        Raises:
            CodeIndexError: another process has saved this index since it was opened, a file of it
                is damaged, or the disk is full; the saved index and all changes stay as they are.
        """
        with self._saving, locked(self._folder):
            on_disk = Header.read(self._folder).generation
            if on_disk != self._header.generation:
                raise CodeIndexError(
                    f"{self._folder} was saved by another process (generation {on_disk}, ours is "
                    f"{self._header.generation}); open it again and repeat the changes"
                )
            header = replace(
                self._header,
                settings=settings or self._header.settings,
                roots=tuple(dict.fromkeys((*self._header.roots, *roots))),
                generation=next_generation(self._folder),
            )
            with self._writing:
                old = self._segments
                parts = self.snapshot()
                kept = np.concatenate((parts.base.alive, parts.tail.alive))
            try:
                old[0].check()  # Damage is not carried over under a new checksum.
            except OSError as error:
                raise CodeIndexError(f"{self._folder} cannot be read ({error})") from error
            with Writer(self._folder, header, progress) as writer:
                write_living(writer, old, parts, kept)
                header, base = writer.commit()
            with self._writing:
                self._segments = carried(base, old, len(parts.tail), kept)
                self._header = header

    def search_embeddings(
        self,
        embedding: NDArray[np.floating[Any]],
        origin: Origin,
        *,
        k: int = 10,
        where: str | None = None,
    ) -> Matches:
        """The k rows of highest cosine with each float query [N, D]: the yardstick for codes.

        Reads every stored embedding, 2 D bytes a row; with `where`, those of the rows it leaves.

        Raises:
            IndexMismatch: a query of another version or width.
            CodeIndexError: k < 1, the index stores no embeddings, or a bad condition.
        """
        if k < 1:
            raise CodeIndexError(f"k is {k}; ask for at least 1 result")
        self._check_query(origin)
        self._tell_engine(origin)
        unit = check_rerank(self._header, len(embedding), embedding, "embedding")
        snapshot = self.snapshot(where)
        found = by_embedding(snapshot, unit, k)
        distances = np.empty(found.rows.shape, dtype=np.int32)
        for query, rows in enumerate(found.rows):
            code = np.packbits(embedding[query] > 0)[None]
            distances[query] = hamming(code, snapshot.codes(rows))[0]
        return Matches(distances, found.rows, found.scores, snapshot)

    def fetch(self, name: str) -> Stored:
        """The row of an id. Raises CodeIndexError when it is not in the index."""
        base, tail = self._segments
        added = tail.row_of.get(name)
        snapshot = Snapshot(base.part(), tail.part())
        row = int(base.find([name])[0]) if added is None else added + len(snapshot.base)
        if row < 0:
            raise CodeIndexError(f"id {shown(name)} is not in the index {self._folder}")
        return _stored(snapshot, row)

    def sample(self, count: int) -> list[Stored]:
        """Up to `count` living rows, spread evenly over the index."""
        snapshot = self.snapshot()
        return [_stored(snapshot, int(row)) for row in _spread(snapshot.rows(), count)]

    def chance(self) -> int | None:
        """The distance in bits from which on a hit may be chance; None where that is not known.

        The rule is that of `index.chance`, from a sample of the index's own codes.
        """
        snapshot = self.snapshot()
        codes = snapshot.codes(_spread(snapshot.rows(), chance.SAMPLE))
        return chance.chance_distance(codes, snapshot.living)

    def compare_engine(
        self, origin: Origin, ids: Sequence[str], codes: NDArray[np.uint8]
    ) -> float | None:
        """Measure another engine: its codes of pictures that the index holds, against ours.

        The share of differing bits is remembered and stated when the engine's first query
        warns.

        Returns:
            The share of bits that differ, or None when no id is in the index.

        Raises:
            IndexMismatch: codes of another version or width.
        """
        self._check_version(origin)
        check_codes(self._header, codes)
        base, tail = self._segments
        rows = base.find(ids)
        added = [tail.row_of.get(name, -1) for name in ids]
        snapshot = Snapshot(base.part(), tail.part())
        rows = np.where(np.array(added) >= 0, np.array(added) + len(snapshot.base), rows)
        there = rows >= 0
        if not there.any():
            return None
        bits = np.unpackbits(snapshot.codes(rows[there]) ^ codes[there], axis=1)
        self._disagreement[origin.engine] = float(bits.mean())
        return self._disagreement[origin.engine]

    def disagreement(self, engine: str) -> float | None:
        """Share of bits in which an engine differs, as `compare_engine` measured it; else None."""
        return self._disagreement.get(engine)

    def _check_version(self, origin: Origin) -> None:
        """For codes that are stored, or compared with those of the same picture."""
        if origin.version != self._header.origin.version:
            raise self._mismatch(origin)

    def _check_query(self, origin: Origin) -> None:
        if not origin.may_search(self._header.origin.version):
            raise self._mismatch(origin)

    def _mismatch(self, origin: Origin) -> IndexMismatch:
        return IndexMismatch(
            f"the codes are of version {origin.version}, the index {self._folder} of "
            f"{self._header.origin.version}: they cannot be compared; back-fill the corpus "
            "with the new version and build a new index"
        )

    def _tell_engine(self, origin: Origin) -> None:
        """Warn, once, of another engine of the index's version."""
        home, engine = self._header.origin, origin.engine
        if origin.version != home.version or engine == home.engine or engine in self._warned:
            return
        self._warned.add(engine)
        share = self._disagreement.get(engine)
        measured = (
            "their disagreement was not measured"
            if share is None
            else f"{share:.2%} of the bits differ (measured on pictures of this index)"
        )
        warnings.warn(
            f"codes of engine {engine} meet an index of engine {home.engine}: "
            f"{measured}; results near a tie may change order",
            EngineWarning,
            stacklevel=3,
        )


def _spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    return rows.take(places)


def _stored(snapshot: Snapshot, row: int) -> Stored:
    metadata = dict(snapshot.record(row))
    rows = np.array([row])
    embedding = None if snapshot.base.embeddings is None else snapshot.embeddings(rows)[0]
    return Stored(metadata.pop(ID), snapshot.codes(rows)[0], embedding, metadata)
