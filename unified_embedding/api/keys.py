"""Bearer keys: a file of names and SHA-256 digests, read again when it changes.

    # name  sha256 of the key
    search-team  2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b

A digest is enough, since keys are random: `openssl rand -hex 32` makes one, and
`printf %s KEY | sha256sum` its digest.
"""

import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Final

from unified_embedding.api.problems import ApiError
from unified_embedding.errors import KeyFileError
from unified_embedding.key_files import read_pairs
from unified_embedding.whole_files import stamp

_LOOK_SECONDS: Final = 1.0
_LOG: Final = logging.getLogger(__name__)


class Keys:
    """The keys of a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file. Raises KeyFileError naming the line that is wrong."""
        self._path = Path(path)
        self._seen = stamp(self._path)
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
            there = stamp(self._path)
            if there != self._seen:
                self._seen = there
                self._names = _read(self._path)
                _LOG.info("%d keys read from %s", len(self._names), self._path)
        except KeyFileError as error:
            _LOG.error("keys stay as they were: %s", error)


def _read(path: Path) -> dict[str, str]:
    """Name by digest."""
    pairs = read_pairs(path, "[0-9a-f]{64}", "NAME and the SHA-256 of a key (64 hex digits)")
    return {digest: name for name, digest in pairs}
