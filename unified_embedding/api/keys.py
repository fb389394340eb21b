"""Bearer keys: a file of names and SHA-256 digests, read again when it changes.

    # name  sha256 of the key
    search-team  2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b

A digest is enough, since keys are random: `openssl rand -hex 32` makes one, and
`printf %s KEY | sha256sum` its digest.
"""

import hashlib
import logging
import os
import re
import time
from pathlib import Path
from typing import Final

from unified_embedding.api.problems import ApiError
from unified_embedding.errors import KeyFileError, shown

_LOOK_SECONDS: Final = 1.0
_LINE: Final = re.compile(r"([\w.-]{1,64})\s+([0-9a-f]{64})")
_LOG: Final = logging.getLogger(__name__)


class Keys:
    """The keys of a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file. Raises KeyFileError naming the line that is wrong."""
        self._path = Path(path)
        self._seen = self._stamp()
        self._names = _read(self._path)
        self._looked = time.monotonic()

    def name(self, authorization: str) -> str:
        """Whose key a header `Authorization` carries. Raises ApiError (401)."""
        self._look()
        scheme, _, key = authorization.partition(" ")
        if not authorization:
            raise ApiError(
                401, "send your key: Authorization: Bearer KEY", "missing_api_key",
                kind="authentication_error",
            )  # fmt: skip
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        if scheme.lower() != "bearer" or digest not in self._names:
            raise ApiError(
                401, "this key is not known here", "invalid_api_key", kind="authentication_error"
            )
        return self._names[digest]

    def _look(self) -> None:
        """Read the file again if it changed; what is malformed leaves the keys as they are."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._names = _read(self._path)
                _LOG.info("%d keys read from %s", len(self._names), self._path)
        except KeyFileError as error:
            _LOG.error("keys stay as they were: %s", error)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            there = self._path.stat()
        except OSError as error:
            raise KeyFileError(f"the file of keys cannot be read: {error}") from error
        return there.st_mtime_ns, there.st_size, there.st_ino


def _read(path: Path) -> dict[str, str]:
    """Name by digest."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise KeyFileError(f"the file of keys cannot be read: {error}") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise KeyFileError(
                f"{path}, line {number}: {shown(text)} is not NAME and the SHA-256 of a key "
                "(64 hex digits)"
            )
        names[found[2]] = found[1]
    return names
