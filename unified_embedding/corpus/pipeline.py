"""From files to vectors: reading, sending and collecting, a bounded number at a time."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from unified_embedding import Box
from unified_embedding.client import EmbedderClient
from unified_embedding.corpus.journal import Part
from unified_embedding.corpus.places import read_regular, reason
from unified_embedding.corpus.vector_files import Rows
from unified_embedding.errors import RequestAborted, RequestRejected, VersionMismatch
from unified_embedding.image import Limits

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Chunk:
    """Pictures that travel in one request; all belong to one part."""

    part: int
    files: Sequence[Path]


def cut(part: int, files: Sequence[Path], size: int) -> list[Chunk]:
    """Cut one part's files into requests of at most `size` pictures."""
    return [Chunk(part, files[start : start + size]) for start in range(0, len(files), size)]


def embed_files(
    client: EmbedderClient,
    files: Sequence[Path],
    version: str,
    outputs: Sequence[str],
    crop: Box | None,
) -> Part:
    """Read and embed the files of one request; what cannot be read or embedded is skipped.

    Raises:
        VersionMismatch: the server no longer runs embedder `version`.
        ClientError: the server failed, so that nothing is known about the pictures.
        ImageError: a limit in the environment is not a number.
    """
    limits = Limits.from_environment()
    names, images, skipped = [], [], []
    for file in files:
        try:
            str(file).encode()
            images.append(read_regular(str(file), limits.max_bytes))
            names.append(str(file))
        except UnicodeEncodeError:
            skipped.append((str(file), "its name is not UTF-8, so that it cannot be an id"))
        except OSError as failure:
            skipped.append((str(file), f"cannot be read ({reason(failure)})"))
    answer = client.embed_each(images, crops=crop, outputs=outputs)
    for row, error in answer.errors.items():
        if not isinstance(error, (RequestRejected, RequestAborted)):
            raise error
        skipped.append((names[row], error.reason))
    good = answer.embedded
    if good.version != version:
        raise VersionMismatch(
            f"the server's embedder version changed from {version} to {good.version} during the "
            "run; vectors of both must not be mixed in one file"
        )
    rows = Rows(
        ids=np.array([names[row] for row in answer.rows], dtype=np.str_),
        embedding=good.embedding,
        code=good.code,
        version=np.full(len(good), good.version),
        engine=np.full(len(good), good.engine),
    )
    return Part(rows, skipped)


def in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    window: int,
) -> Generator[_Result, None, None]:
    """`work` of each item, in the items' order, with at most `window` of them under way."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def joined(parts: Sequence[Part]) -> Part:
    """The parts below one another; at least one is needed."""
    rows = [part.rows for part in parts]
    embeddings = [block.embedding for block in rows if block.embedding is not None]
    codes = [block.code for block in rows if block.code is not None]
    return Part(
        Rows(
            ids=np.concatenate([block.ids for block in rows]),
            embedding=np.concatenate(embeddings) if embeddings else None,
            code=np.concatenate(codes) if codes else None,
            version=np.concatenate([block.version for block in rows]),
            engine=np.concatenate([block.engine for block in rows]),
        ),
        [pair for part in parts for pair in part.skipped],
    )
