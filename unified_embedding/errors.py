"""Every error the library raises on purpose, and how much of a caller's value they show.

EmbeddingError
├── SpecError            a spec.json, or what belongs to it, does not fit
├── ImageError           one picture cannot be embedded; the message says why
├── CodeError            embeddings or codes of the wrong shape, type or value
├── CodeIndexError       a code index is missing, damaged or asked for what it does not hold
│   └── IndexMismatch        codes of another version or width than the index holds
├── GalleryError         a gallery's manifest does not fit its folder
├── ClientError          a call to the server failed
│   ├── ServerUnavailable    not reachable or not ready
│   │   └── ServerDied           its process ended while it had the request
│   ├── Overloaded           the server is alive, but could not answer in time
│   ├── DeadlineExceeded     no answer within the deadline
│   ├── RequestAborted       the server died twice while it had this request
│   ├── RequestRejected      the server refused the input (INVALID_ARGUMENT)
│   ├── VersionMismatch      the server runs another embedder than expected
│   └── ServerError          anything else the server answered
├── InputError           the arguments name no picture
├── StoreError           a place for a corpus cannot be used
├── CorpusError          a corpus cannot be read or continued
├── ExecutorError        workers of a back-fill could not be started, or broke down
├── RunError             a command cannot be carried out
├── DamagedError         inside the sources: a file cannot be read
├── DamagedRows          inside them: rows of a Parquet file cannot
├── DataError            training data are missing, damaged or malformed
├── TrainingError        a training run is configured wrongly or cannot go on
├── BuildError           an engine was not built or not installed
│   └── GateError            it does too much to embeddings or codes
├── Fp16Error            a graph cannot run in FP16
├── TrtError             TensorRT refused a graph or did not build it
├── SetupError           Triton cannot be started here
├── Malformed            in the server: a parameter of a request is damaged
├── Late                 in the server: a request cannot be answered in time
├── Busy                 in the server: too much work for a large request
├── PicturesError        no pictures for a measurement
├── KeyFileError         the HTTP API's file of keys is missing or malformed
├── SettingsError        an option or environment variable cannot be used
├── Dropped              a load generator could not send a request that was due
└── Breach               a fuzzer found a promise broken

EngineWarning (a UserWarning): vectors of two engines of one embedder version meet.
"""

import copyreg
from collections.abc import Sequence
from typing import Final

_SHOWN: Final = 80


def shown(value: object) -> str:
    """`value` as an error message shows it: its repr, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class EmbeddingError(Exception):
    """Base of every error of this library. All of them can be pickled."""

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls the class with the message, which is not what every class takes.
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class SpecError(EmbeddingError, ValueError):
    """An embedder's description is missing, malformed or contradicts its weights."""


class ImageError(EmbeddingError, ValueError):
    """One picture cannot be embedded. The message names the value and the limit."""


class CodeError(EmbeddingError, ValueError):
    """Embeddings or packed codes have the wrong shape, dtype or value."""


class CodeIndexError(EmbeddingError, ValueError):
    """A code index is missing, damaged, or asked for something it does not hold."""


class IndexMismatch(CodeIndexError):
    """Codes of another embedder version or width than the index holds; they cannot be compared."""


class GalleryError(EmbeddingError, ValueError):
    """The gallery's manifest is missing, malformed, or names a picture that is not there."""


class ClientError(EmbeddingError):
    """A call to the server failed. The message is the reason, after `image <row>: ` with a row.

    Attributes:
        reason: what went wrong, without the picture's place.
        row: index of the picture at fault in the list that was passed in, or None when the
            error concerns more than one.
    """

    def __init__(self, reason: str, row: int | None = None) -> None:
        super().__init__(reason if row is None else f"image {row}: {reason}")
        self.reason = reason
        self.row = row


class ServerUnavailable(ClientError):
    """The server cannot be reached or is not ready. Worth retrying."""


class ServerDied(ServerUnavailable):
    """The server's process, or one of its models', ended while it had the request.

    Attributes:
        was_well: the process was well, as far as the client knew, when the request was sent:
            the request may be what ended it.
    """

    def __init__(self, reason: str, was_well: bool) -> None:
        super().__init__(reason)
        self.was_well = was_well


class Overloaded(ClientError):
    """The server is alive, but has too much work to answer in time. Send less, or allow more time.

    Sending the same again at once makes it worse.
    """


class DeadlineExceeded(ClientError):
    """No answer arrived within the deadline."""


class RequestAborted(ClientError):
    """The server's process died twice while it had this request, which is not sent again.

    One of its pictures may be what ended the process.

    Attributes:
        rows: indices of the request's pictures in the list that was passed in.
    """

    def __init__(self, reason: str, rows: Sequence[int] = ()) -> None:
        super().__init__(reason, rows[0] if len(rows) == 1 else None)
        self.rows = tuple(rows)


class RequestRejected(ClientError):
    """The server refused an input; `row` is None when it refused the request as a whole."""


class VersionMismatch(ClientError):
    """The server runs another embedder version; its vectors must not be mixed with ours."""


class ServerError(ClientError):
    """The server answered with an error that is neither bad input nor overload."""


class InputError(EmbeddingError):
    """The arguments name no picture, or cannot be understood; the message says which and why."""


class StoreError(EmbeddingError):
    """A place cannot be used; the message says why."""


class CorpusError(EmbeddingError):
    """A corpus cannot be read or continued; the message says why and what to do."""


class ExecutorError(EmbeddingError):
    """Workers could not be started, or broke down; the message says why and what to do."""


class RunError(EmbeddingError):
    """A command cannot be carried out; the message says why and what to do."""


class DamagedError(EmbeddingError):
    """A source file cannot be read at all; the message says why."""


class DamagedRows(EmbeddingError):
    """A column cannot be read from here on; the message says why."""


class DataError(EmbeddingError, ValueError):
    """Training data are missing, damaged or malformed. The message says how to get them."""


class TrainingError(EmbeddingError, ValueError):
    """A training run is configured wrongly, or its data, labels or checkpoint do not fit."""


class BuildError(EmbeddingError):
    """The engine was not built or not installed; the message says why and what to do."""


class GateError(BuildError):
    """The engine differs too much from the float embedder; the one installed before stays."""


class Fp16Error(EmbeddingError, ValueError):
    """The graph cannot run in FP16; the message names the node."""


class TrtError(EmbeddingError, ValueError):
    """TensorRT refused the graph or did not build it; the message names the node if it did."""


class SetupError(EmbeddingError):
    """Triton cannot be started; the message says what to do."""


class Malformed(EmbeddingError, ValueError):
    """A parameter of a request cannot be read, or a deadline is no moment; the message names it."""


class Late(EmbeddingError):
    """A request can no longer be answered in time; the message says by how much."""

    def __init__(self, left: float, needed: float) -> None:
        """`left` seconds are left until its deadline, and an answer takes `needed`."""
        if left < 0:
            when = f"its deadline passed {-left:.3f} s ago"
        else:
            when = (
                f"{left:.3f} s are left until its deadline and an answer takes {needed:.3f} s now"
            )
        super().__init__(
            f"overloaded, the request was dropped: {when}. Send less or allow more time; if the "
            "caller waited no longer than its timeout, its clock and this server's differ"
        )


class Busy(EmbeddingError):
    """The server has too much work of one kind for a request; the message says which."""


class PicturesError(EmbeddingError, ValueError):
    """No pictures can be had from what was named; the message says why."""


class KeyFileError(EmbeddingError, ValueError):
    """The HTTP API's file of keys is missing or malformed. The message names the line."""


class SettingsError(EmbeddingError, ValueError):
    """An option's value cannot be used; the message says why."""


class Dropped(EmbeddingError):
    """A request was due and not sent, because too many were in flight already."""


class Breach(EmbeddingError, AssertionError):
    """A promise did not hold for one case."""


class EngineWarning(UserWarning):
    """Vectors come from another engine of the same version than the others.

    Engines of one version (say bf16 and fp16) round differently, so that a small share of the
    code's bits disagrees.
    """
