"""What the clients return. Holds data only and imports neither gRPC nor tritonclient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import ClientError, RequestAborted, RequestRejected, VersionMismatch
from unified_embedding.origin import Origin

EMBEDDING = "embedding"
CODE = "code"
OUTPUTS = (EMBEDDING, CODE)

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Embedded:
    """Vectors of N pictures, row i for the i-th picture.

    Attributes:
        embedding: float32 [N, D], or None when it was not asked for.
        code: uint8 [N, D / 8], packed sign bits, or None when it was not asked for.
        version: the embedder's version; only vectors of equal version may be compared.
        engine: id of the engine that computed them; several ids, joined by " + ", when
            replicas with different engines answered parts of the list.
        compatible_with: further versions whose stored codes may be searched with these vectors.
    """

    embedding: NDArray[np.float32] | None
    code: NDArray[np.uint8] | None
    version: str
    engine: str
    compatible_with: tuple[str, ...] = ()

    @property
    def origin(self) -> Origin:
        """Who computed the vectors, as `CodeIndex.search` and `add` want to know it."""
        return Origin(self.version, self.engine, self.compatible_with)

    def __getitem__(self, row: int) -> "Embedded":
        """One picture's vectors, as an answer of one row."""
        row = range(len(self))[row]
        return Embedded(
            None if self.embedding is None else self.embedding[row : row + 1],
            None if self.code is None else self.code[row : row + 1],
            self.version,
            self.engine,
            self.compatible_with,
        )

    def __len__(self) -> int:
        for rows in (self.embedding, self.code):
            if rows is not None:
                return len(rows)
        return 0


@dataclass(frozen=True, eq=False)
class EmbeddedEach:
    """Vectors of the pictures that could be embedded, and the error of each that could not.

    Attributes:
        embedded: the good pictures' vectors, in the caller's order.
        rows: for each row of `embedded` its index in the caller's list.
        errors: for every other index of the caller's list the reason: RequestRejected for a
            bad picture; another ClientError for pictures whose request got no answer.
    """

    embedded: Embedded
    rows: tuple[int, ...]
    errors: Mapping[int, ClientError]


@dataclass(frozen=True)
class ServerInfo:
    """What a server says about itself and its embedder.

    Attributes:
        version: the embedder's version.
        engine: id of the engine: target, precision and a hash of its inputs.
        dim: width D of the embedding.
        input_size: side of the square input in pixels.
        max_batch_size: most pictures one request may hold.
        triton: version of the Triton server.
        compatible_with: further versions whose stored codes the embedder's queries may search.
    """

    version: str
    engine: str
    dim: int
    input_size: int
    max_batch_size: int
    triton: str
    compatible_with: tuple[str, ...] = ()

    @property
    def origin(self) -> Origin:
        """Who computes the server's vectors."""
        return Origin(self.version, self.engine, self.compatible_with)

    @property
    def code_bytes(self) -> int:
        """Bytes of one packed code, D / 8."""
        return self.dim // 8


@dataclass(frozen=True)
class StageStatistics:
    """Running totals of one model of the server, from Triton's statistics extension.

    Times are nanoseconds summed over `requests`, or over `executions` for the three
    compute times (a batch counts once). The difference of two readings describes what
    happened between them.

    Attributes:
        requests: requests answered successfully.
        failures: requests that failed.
        inferences: pictures computed; a request of N pictures counts N.
        executions: batches executed.
        total_ns: whole time inside the model, queue included.
        queue_ns: waiting for an instance and for the batch.
        input_ns: gathering inputs.
        infer_ns: computing.
        output_ns: scattering outputs.
    """

    requests: int = 0
    failures: int = 0
    inferences: int = 0
    executions: int = 0
    total_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0

    def __sub__(self, earlier: "StageStatistics") -> "StageStatistics":
        now, then = vars(self), vars(earlier)
        return StageStatistics(**{name: now[name] - then[name] for name in now})

    @property
    def mean_batch(self) -> float:
        """Pictures per executed batch; 0 when nothing ran."""
        return self.inferences / self.executions if self.executions else 0.0


Answer = Embedded | RequestRejected | RequestAborted
"""What `embed_iter` has for one picture: one row of vectors, or why there is none."""


def join(parts: Sequence[Embedded]) -> Embedded:
    """Put the answers of several requests below one another; at least one is needed.

    Raises:
        VersionMismatch: the parts come from different embedders, as happens when a rolling
            restart changes the model between two requests of one list.
    """
    check_versions({part.version for part in parts})
    return Embedded(
        embedding=_stack([part.embedding for part in parts]),
        code=_stack([part.code for part in parts]),
        version=parts[0].version,
        engine=" + ".join(dict.fromkeys(part.engine for part in parts)),
        compatible_with=parts[0].compatible_with,
    )


def check_versions(versions: set[str]) -> None:
    """Raise VersionMismatch unless all answers of one call come from one embedder version."""
    if len(versions) != 1:
        raise VersionMismatch(
            f"one list was answered by embedder versions {sorted(versions)}: the server changed "
            "its model in between; embed the list again"
        )


def _stack(blocks: Sequence[NDArray[_T] | None]) -> NDArray[_T] | None:
    present = [block for block in blocks if block is not None]
    return np.concatenate(present) if present else None
