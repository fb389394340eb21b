"""What the search programs share: metadata for people, and the comparison of engines."""

import json
from pathlib import Path
from typing import Any, Final

from _picture_files import SUFFIXES

from unified_embedding.client import EmbedderClient, ServerInfo
from unified_embedding.errors import CodeIndexError
from unified_embedding.index import CodeIndex, Origin

DEFAULT_INDEX: Final = Path("out/index")
SAMPLE: Final = 16
_NAMES: Final = ("name", "title", "product", "label")


def facts(metadata: dict[str, Any]) -> dict[str, Any]:
    """A hit's metadata with the JSON of the back-fill unfolded."""
    flat = dict(metadata)
    said = flat.pop("metadata", None)
    return {**flat, **(json.loads(said) if said else {})}


def title(name: str, said: dict[str, Any]) -> str:
    """What to call a hit: its name if it has one, else the file's."""
    for key in _NAMES:
        if said.get(key):
            return str(said[key])
    return name.rpartition("/")[2]


def picture_file(said: dict[str, Any]) -> Path | None:
    """The hit's picture when it is a file on this machine, else None."""
    source = said.get("source")
    if not isinstance(source, str) or "://" in source or "::" in source:
        return None
    path = Path(source)
    return path if path.suffix.lower() in SUFFIXES and path.is_file() else None


def origin_of(server: ServerInfo) -> Origin:
    """Who computes the server's codes."""
    return Origin(server.version, server.engine)


def measure_engine(index: CodeIndex, client: EmbedderClient, server: ServerInfo) -> float | None:
    """Measure another engine of the same version on pictures of the index.

    Returns:
        The share of bits that differ; None when the engine is the index's own, the version
        is another, or no picture of the index can be read here.
    """
    origin = origin_of(server)
    if origin == index.header.origin or origin.version != index.header.origin.version:
        return None
    rows = [(row.id, picture_file(facts(row.metadata))) for row in index.sample(SAMPLE)]
    there = [(name, path) for name, path in rows if path is not None]
    if not there:
        return None
    answer = client.embed_each([path.read_bytes() for _, path in there], outputs=("code",))
    names = [there[row][0] for row in answer.rows]
    if answer.embedded.code is None or not names:
        return None
    return index.compare_engine(origin, names, answer.embedded.code)


def open_index(folder: Path) -> CodeIndex:
    """Open an index. Raises CodeIndexError with the two commands that make one."""
    try:
        return CodeIndex.open(folder)
    except CodeIndexError as error:
        if folder.is_dir() and any(folder.iterdir()):
            raise
        raise CodeIndexError(
            f"there is no index in {folder}. Make one: python clients/backfill.py PICTURES "
            f"--out out/corpus && python clients/index.py build out/corpus --out {folder}"
        ) from error
