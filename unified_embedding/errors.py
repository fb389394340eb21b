"""Every error the library raises on purpose, and how much of a caller's value they show.

EmbeddingError
├── SpecError            a spec.json, or what belongs to it, does not fit
├── ImageError           one picture cannot be embedded; the message says why
├── TrainingError        a training run is configured wrongly or cannot go on
├── CodeError            embeddings or codes of the wrong shape, type or value
├── CodeIndexError       a code index is missing, damaged or asked for what it does not hold
│   └── IndexMismatch        codes of another version or width than the index holds
├── DataError            training data are missing, damaged or malformed
├── GalleryError         a gallery's manifest does not fit its folder (gallery.py)
├── PicturesError        no pictures for a measurement (measure/pictures.py)
├── InputError           the arguments of a back-fill name no picture (corpus/sources/item.py)
├── StoreError           a place for a corpus cannot be used (corpus/places.py)
├── ExecutorError        workers of a back-fill broke down (corpus/executors.py)
├── DamagedError         inside the sources: a file cannot be read (corpus/sources/tars.py)
├── DamagedRows          inside them: rows of a Parquet file cannot (corpus/sources/column.py)
├── SetupError           Triton cannot be started here (tritonserver.py)
├── Late                 in the server: a request cannot be answered in time (deadline.py)
├── Busy                 in the server: too much work for a large request (serving/workload.py)
├── Malformed            in the server: a parameter of a request is damaged (deadline.py)
└── ClientError          a call to the server failed
    ├── ServerUnavailable    not reachable or not ready
    │   └── ServerDied           its process ended while it had the request
    ├── Overloaded           the server is alive, but could not answer in time
    ├── DeadlineExceeded     no answer within the deadline
    ├── RequestAborted       the server died twice while it had this request
    ├── RequestRejected      the server refused the input (INVALID_ARGUMENT)
    ├── VersionMismatch      the server runs another embedder than expected
    └── ServerError          anything else the server answered
"""

from typing import Final

_SHOWN: Final = 80


def shown(value: object) -> str:
    """`value` as an error message shows it: its repr, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


class EmbeddingError(Exception):
    """Base of every error of this library."""


class SpecError(EmbeddingError, ValueError):
    """An embedder's description is missing, malformed or contradicts its weights."""


class ImageError(EmbeddingError, ValueError):
    """One picture cannot be embedded. The message names the value and the limit."""


class TrainingError(EmbeddingError, ValueError):
    """A training run is configured wrongly, or its data, labels or checkpoint do not fit."""


class CodeError(EmbeddingError, ValueError):
    """Embeddings or packed codes have the wrong shape, dtype or value."""


class CodeIndexError(EmbeddingError, ValueError):
    """A code index is missing, damaged, or asked for something it does not hold."""


class IndexMismatch(CodeIndexError):
    """Codes of another embedder version or width than the index holds; they cannot be compared."""


class DataError(EmbeddingError, ValueError):
    """Training data are missing, damaged or malformed. The message says how to get them."""


class ClientError(EmbeddingError):
    """A call to the server failed."""


class ServerUnavailable(ClientError):
    """The server cannot be reached or is not ready. Worth retrying."""


class ServerDied(ServerUnavailable):
    """The server's process, or one of its models', ended while it had the request.

    Attributes:
        was_well: the process was well, as far as the client knew, when the request was sent:
            the request may be what ended it.
    """

    def __init__(self, message: str, was_well: bool) -> None:
        super().__init__(message)
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

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class RequestRejected(ClientError):
    """The server refused an input.

    Attributes:
        row: index of the refused picture in the list that was passed in, or None
            when the refusal concerns the whole request.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class VersionMismatch(ClientError):
    """The server runs another embedder version; its vectors must not be mixed with ours."""


class ServerError(ClientError):
    """The server answered with an error that is neither bad input nor overload."""
