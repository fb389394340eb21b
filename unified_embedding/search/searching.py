"""What the search programs share: metadata for people, and the comparison of engines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from unified_embedding.checkout import program
from unified_embedding.client import EmbeddedEach, EmbedderClient, ServerInfo
from unified_embedding.errors import CodeIndexError
from unified_embedding.index import CodeIndex, Origin
from unified_embedding.search.pictures import Pictures

DEFAULT_INDEX: Final = Path("out/index")
SAMPLE: Final = 16
_NAMES: Final = ("name", "title", "product", "label")


def title(name: str, said: dict[str, Any]) -> str:
    """What to call a hit: its name if it has one, else the file's."""
    for key in _NAMES:
        if said.get(key):
            return str(said[key])
    return name.rpartition("/")[2]


def pictures_of(index: CodeIndex, roots: Sequence[Path] | None) -> Pictures:
    """Reads the pictures of an index below `roots`, or where its corpus was made from."""
    return Pictures(roots or index.header.roots)


def origin_of(server: ServerInfo) -> Origin:
    """Who computes the server's codes."""
    return Origin(server.version, server.engine)


def measure_engine(
    index: CodeIndex, client: EmbedderClient, server: ServerInfo, pictures: Pictures
) -> float | None:
    """Measure another engine of the same version on pictures of the index.

    Returns:
        The share of bits that differ; None when the engine is the index's own, the version
        is another, or no picture of the index can be read here.
    """
    origin = origin_of(server)
    if origin == index.header.origin or origin.version != index.header.origin.version:
        return None
    there = sampled(index, pictures)
    if not there:
        return None
    answer = client.embed_each(list(there.values()), outputs=("code",))
    return note_engine(index, answer, list(there))


def sampled(index: CodeIndex, pictures: Pictures) -> dict[str, bytes]:
    """Some pictures of the index that can be read here, by their ids."""
    rows = ((row.id, pictures.read(row.metadata)) for row in index.sample(SAMPLE))
    return {name: data for name, data in rows if data is not None}


def note_engine(index: CodeIndex, answer: EmbeddedEach, names: Sequence[str]) -> float | None:
    """The share of bits in which the codes of `names` differ from the index's; remembered there."""
    there = [names[row] for row in answer.rows]
    if answer.embedded.code is None or not there:
        return None
    return index.compare_engine(answer.embedded.origin, there, answer.embedded.code)


def open_index(folder: Path) -> CodeIndex:
    """Open an index. Raises CodeIndexError with the two commands that make one."""
    try:
        return CodeIndex.open(folder)
    except CodeIndexError as error:
        if folder.is_dir() and any(folder.iterdir()):
            raise
        raise CodeIndexError(
            f"there is no index in {folder}. Make one: {program('backfill')} PICTURES "
            f"--out out/corpus && {program('index')} build out/corpus --out {folder}"
        ) from error
