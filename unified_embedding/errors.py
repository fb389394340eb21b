"""Every error the library raises on purpose, and how much of a caller's value they show.

EmbeddingError
├── SpecError            a spec.json, or what belongs to it, does not fit
├── ImageError           one picture cannot be embedded; the message says why
├── TrainingError        a training run is configured wrongly or cannot go on
├── CodeError            embeddings or codes of the wrong shape, type or value
├── CodeIndexError       a code index is missing, damaged or asked for what it does not hold
│   └── IndexMismatch        codes of another version or width than the index holds
├── DataError            training data are missing, damaged or malformed
└── ClientError          a call to the server failed
    ├── ServerUnavailable    not reachable, not ready, or overloaded
    ├── DeadlineExceeded     no answer within the deadline
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
    """The server cannot be reached, is not ready, or sheds load. Worth retrying."""


class DeadlineExceeded(ClientError):
    """No answer arrived within the deadline."""


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
