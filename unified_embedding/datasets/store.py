"""Files that are made once, remembered with their checksums, and made again when damaged."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from unified_embedding.whole_files import write_whole

HOME_VARIABLE: Final = "UNIFIED_EMBEDDING_DATA"
_LEDGER: Final = "checksums.txt"


def data_home() -> Path:
    """Folder of everything fetched and prepared, outside any checkout.

    The environment variable UNIFIED_EMBEDDING_DATA wins, then the cache folder (XDG base
    directory specification).
    """
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).expanduser() / "unified-embedding"


def sha256(data: bytes) -> str:
    """SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


class Store:
    """A folder of prepared files and the checksum of each.

    The checksums stand in `checksums.txt` ("SHA-256  path", as sha256sum writes them; a later
    line wins), appended file by file: whatever was finished before an interruption is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ledger = folder / _LEDGER
        self._torn = False
        self._known = self._read()

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those of `paths` that were never made, are gone, or no longer match their checksum."""
        return [path for path in paths if not self._intact(path)]

    def add(self, files: Mapping[str, bytes]) -> None:
        """Write files (path below the folder -> contents) and remember their checksums."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._ledger.open("a") as ledger:
            if self._torn:
                ledger.write("\n")
                self._torn = False
            for path, data in files.items():
                write_whole(self.folder / path, data)
                self._known[path] = sha256(data)
                ledger.write(f"{self._known[path]}  {path}\n")

    def checksum(self, path: str) -> str:
        """SHA-256 in hex of a file as it was made. Raises KeyError for an unknown one."""
        return self._known[path]

    def _intact(self, path: str) -> bool:
        expected = self._known.get(path)
        if expected is None:
            return False
        try:
            return sha256((self.folder / path).read_bytes()) == expected
        except OSError:
            return False

    def _read(self) -> dict[str, str]:
        try:
            text = self._ledger.read_text()
        except FileNotFoundError:
            return {}
        # The last line may have been cut short by a crash; its file is then made again.
        self._torn = bool(text) and not text.endswith("\n")
        pairs = (line.partition("  ") for line in text.splitlines())
        return {path: digest for digest, _, path in pairs if len(digest) == 64 and path}
