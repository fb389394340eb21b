"""What an index holds and who computed it; the header file is also the commit point of a save."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from unified_embedding.checkout import program
from unified_embedding.codes import code_bytes
from unified_embedding.errors import CodeError, CodeIndexError, shown
from unified_embedding.index.checksums import REMEDY, File
from unified_embedding.origin import Origin

HEADER_FILE: Final = "header.json"
# 2 states what each file holds. An index of format 1 is read as it is; a save brings it up to date.
FORMAT: Final = 2
_READABLE: Final = (1, FORMAT)
# With 32 clusters however many there are, recall falls as an index grows: at ten million codes
# and 4,096 clusters to .78 (`make bench-index FULL=1`).
_LEAST_PROBES: Final = 32
_LISTS_PER_PROBE: Final = 32

Kind = Literal["flat", "ivf", "hnsw"]


@dataclass(frozen=True)
class Settings:
    """How the base of an index is searched.

    Attributes:
        kind: "flat" compares every code (exact); "ivf" the codes of the nearest `nprobe`
            of `lists` clusters; "hnsw" walks a neighbour graph.
        lists: clusters of "ivf"; 0 takes the power of two nearest to sqrt(rows).
        nprobe: clusters that an "ivf" query visits; 0 takes one in 32, and at least 32.
        links: neighbours per node of "hnsw".
        ef_construction: beam width while "hnsw" is built; at 40 the graph of a million codes falls
            apart, and no `ef_search` finds more than seven of ten neighbours.
        ef_search: beam width of an "hnsw" query.
        threads: threads that build "ivf" and "hnsw"; more than one makes "hnsw" graphs
            differ from build to build.
    """

    kind: Kind = "flat"
    lists: int = 0
    nprobe: int = 0
    links: int = 32
    ef_construction: int = 100
    ef_search: int = 128
    threads: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise CodeIndexError(f"kind {shown(self.kind)} is not one of {list(get_args(Kind))}")
        for name in (one.name for one in fields(self)[1:]):
            value, least = getattr(self, name), 0 if name in ("lists", "nprobe") else 1
            if not isinstance(value, int) or value < least:
                raise CodeIndexError(f"{name} is {shown(value)}; it must be at least {least}")

    def clusters(self, rows: int) -> int:
        """Clusters that an "ivf" of `rows` codes asks for."""
        return self.lists or int(2 ** round(math.log2(math.sqrt(rows))))

    def probes(self, lists: int) -> int:
        """Of `lists` clusters, those that an "ivf" query visits."""
        return min(lists, self.nprobe or max(_LEAST_PROBES, lists // _LISTS_PER_PROBE))


@dataclass(frozen=True)
class Header:
    """The contents of header.json.

    Attributes:
        origin: version and engine of the codes.
        dim: width D of the embedding; a code has D / 8 bytes.
        settings: how the base is searched.
        embeddings: whether float16 embeddings are stored beside the codes.
        rows: codes in the base.
        generation: number of the save that wrote the base; its files carry the number.
        roots: folders and files that the corpus was made from: where the rows' pictures may lie.
        files: what each file of the base must hold; empty in an index of format 1.
    """

    origin: Origin
    dim: int
    settings: Settings
    embeddings: bool
    rows: int
    generation: int
    roots: tuple[str, ...] = ()
    files: Mapping[str, File] = field(default_factory=dict)

    def __post_init__(self) -> None:
        code_bytes(self.dim)

    def file(self, folder: Path, name: str) -> Path:
        """Path of one of this generation's files."""
        return folder / f"{self.generation:06d}-{name}"

    def text(self) -> str:
        """What header.json holds."""
        raw = {"format": FORMAT, **asdict(self)}
        # What queries a version's embedder may ask of others says nothing about stored codes.
        del raw["origin"]["compatible_with"]
        return json.dumps({**raw, "sha256": _digest(raw)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Header":
        """Read `folder/header.json`. Raises CodeIndexError when missing, damaged or unknown."""
        path = folder / HEADER_FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CodeIndexError(
                f"{folder} is not a code index (no {HEADER_FILE}); "
                f"build one from a corpus: {program('index')} build CORPUS"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CodeIndexError(f"{path} is not readable JSON ({error}); {REMEDY}") from error
        stated = raw.get("format") if isinstance(raw, dict) else None
        if stated not in _READABLE:
            raise CodeIndexError(
                f"{path} has index format {shown(stated)}; this library reads "
                f"{' and '.join(map(str, _READABLE))}: build it again"
            )
        if stated != 1 and raw.pop("sha256", None) != _digest(raw):
            raise CodeIndexError(f"{path} is damaged (its SHA-256 is another); {REMEDY}")
        try:
            return cls._parse(raw)
        except (CodeError, CodeIndexError, KeyError, TypeError, AttributeError) as error:
            raise CodeIndexError(f"{path} is damaged ({error}); {REMEDY}") from error

    @classmethod
    def _parse(cls, raw: dict[str, Any]) -> "Header":
        del raw["format"]
        for name in ("dim", "rows", "generation"):
            if type(raw[name]) is not int or raw[name] < 0:
                raise CodeIndexError(f"{name} is {shown(raw[name])}")
        if type(raw["embeddings"]) is not bool:
            raise CodeIndexError(f"embeddings is {shown(raw['embeddings'])}")
        return cls(
            origin=Origin(**raw.pop("origin")),
            settings=Settings(**raw.pop("settings")),
            roots=tuple(raw.pop("roots", ())),
            files={name: File(**file) for name, file in raw.pop("files", {}).items()},
            **raw,
        )


def _digest(raw: Mapping[str, Any]) -> str:
    """SHA-256 of the header's values, however they are laid out."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
