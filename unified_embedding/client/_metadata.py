"""What travels beside every call, for instance a token."""

import sys
from collections.abc import Awaitable, Callable, Mapping

from unified_embedding.errors import shown

Values = Mapping[str, str | bytes]
Metadata = Values | Callable[[], Values]
AsyncMetadata = Metadata | Callable[[], Awaitable[Values]]


def bearer(token: str) -> dict[str, str]:
    """The metadata of a token as RFC 6750 sends it. Raises ValueError for what is none."""
    # A token comes out of a file or an environment variable, often with its line's end.
    if not (token := token.strip()).isascii() or not token.isprintable() or not token:
        raise ValueError("a token is one line of printable ASCII characters")
    return {"authorization": f"Bearer {token}"}


def pairs(values: Values) -> list[tuple[str, str | bytes]]:
    """Metadata as gRPC takes it, whose keys are in lower case.

    Beside it goes the caller's trace (`traceparent`, W3C Trace Context), where there is one and
    `values` have none.

    Raises:
        TypeError: not a mapping to text, or to bytes for keys that end with -bin.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"metadata is {type(values).__name__}, not a mapping of keys to values")
    for key, value in values.items():
        if not isinstance(value, bytes if key.lower().endswith("-bin") else str):
            # The value may be a secret.
            raise TypeError(
                f"metadata {shown(key)} is {type(value).__name__}; give text, or bytes for a key "
                "that ends with -bin"
            )
    sent = [(key.lower(), value) for key, value in values.items()]
    return sent if any(key == "traceparent" for key, _ in sent) else [*sent, *_trace().items()]


def _trace() -> dict[str, str]:
    """The OpenTelemetry span that the caller is in; none unless its program has loaded that."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(found)
    return found
