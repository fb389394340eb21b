"""Names and metadata from outside, as UTF-8 and strict JSON can hold them."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

_UNDECODED: Final = re.compile("[\udc80-\udcff]")


def printable(name: str) -> str:
    r"""A file's name as UTF-8 can store it: other bytes of it are written as \xe9."""
    escaped = _UNDECODED.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", name)
    return escaped.encode("utf-8", "backslashreplace").decode()


def json_object(facts: Mapping[str, Any]) -> tuple[str, bool]:
    """Facts as a JSON object (RFC 8259) with sorted keys, and whether anything had to change.

    NaN and infinity become null; half of a surrogate pair becomes U+FFFD; what JSON has no
    type for (a date, a decimal number) becomes text.

    Raises:
        ValueError: the facts are nested too deeply.
    """
    try:
        text = json.dumps(facts, ensure_ascii=False, sort_keys=True, default=str, allow_nan=False)
        text.encode()
        return text, False
    except (ValueError, TypeError):
        pass
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    try:
        kept = _clean(facts)
        return json.dumps(kept, ensure_ascii=False, sort_keys=True, allow_nan=False), True
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
