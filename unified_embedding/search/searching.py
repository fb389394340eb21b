"""What the search programs share: index, embedder, metadata for people, comparison of engines."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from unified_embedding.client import Connection, EmbeddedEach, EmbedderClient, Retry, ServerInfo
from unified_embedding.errors import ClientError, VersionMismatch
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


@contextmanager
def embedder_for(
    version: str, urls: Sequence[str], timeout: float, retry: Retry, connection: Connection
) -> Iterator[EmbedderClient]:
    """A client of a server whose queries may search codes of `version`.

    Of the servers at `urls` the first of that very version, else the first that declares it.

    Raises:
        VersionMismatch: none of those that answer may search them.
        ClientError: none answers.
    """
    with ExitStack() as stack:
        fitting: list[tuple[ServerInfo, EmbedderClient]] = []
        problems: list[ClientError] = []
        for url in urls:
            client = EmbedderClient(
                url, expect_version=version, timeout=timeout, retry=retry, **connection.options()
            )
            stack.enter_context(client)
            try:
                fitting.append((client.info(), client))
            except ClientError as error:
                problems.append(error)
        if not fitting:
            problems.sort(key=lambda error: not isinstance(error, VersionMismatch))
            raise problems[0]
        fitting.sort(key=lambda found: found[0].version != version)
        yield fitting[0][1]
