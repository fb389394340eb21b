"""Finished parts of a long run, kept beside its output until that is written.

The list of pictures is cut into parts. A part is stored once all its pictures were answered;
a later run with the same settings takes it from here as long as the part names the same
files with the same sizes and modification times.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from zipfile import BadZipFile

import numpy as np

from unified_embedding.corpus.vector_files import Rows, whole_file
from unified_embedding.errors import JournalError

PART_SIZE: Final = 512
_HEADER: Final = "run.json"


@dataclass(frozen=True)
class Part:
    """One finished part.

    Attributes:
        rows: the pictures that were embedded.
        skipped: (id, reason) of those that could not be.
    """

    rows: Rows
    skipped: Sequence[tuple[str, str]]


class Journal:
    """The folder OUTPUT.parts.

    Attributes:
        engine: id of the engine that began the run.
    """

    def __init__(self, folder: Path, engine: str) -> None:
        self._folder = folder
        self.engine = engine

    @classmethod
    def open(cls, out: Path, settings: Mapping[str, str], engine: str, restart: bool) -> Self:
        """Begin a run that will write `out`, or continue one.

        Raises:
            JournalError: the folder was begun with other settings. Vectors of two embedder
                versions, or of two crops, must not end up in one file.
        """
        folder = out.with_name(f"{out.name}.parts")
        if restart:
            shutil.rmtree(folder, ignore_errors=True)
        header = folder / _HEADER
        if not header.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(header) as file:
                file.write_text(json.dumps({"engine": engine, "settings": dict(settings)}))
        begun = json.loads(header.read_text())
        changed = [
            f"{name} {begun['settings'].get(name)!r} (now {value!r})"
            for name, value in settings.items()
            if begun["settings"].get(name) != value
        ]
        if changed:
            raise JournalError(
                f"{folder} holds an interrupted run with {', '.join(changed)}. Rows of both must "
                "not be mixed in one file: go back to the earlier value to continue that run, or "
                "give --restart to drop it"
            )
        return cls(folder, begun["engine"])

    def write(self, index: int, mark: str, part: Part) -> None:
        """Store a finished part; `mark` is the fingerprint its files had when it was begun."""
        arrays: dict[str, Any] = {
            "fingerprint": np.array(mark),
            "id": part.rows.ids,
            "version": part.rows.version,
            "engine": part.rows.engine,
            "skipped": np.array(part.skipped, dtype=np.str_).reshape(-1, 2),
        }
        if part.rows.embedding is not None:
            arrays["embedding"] = part.rows.embedding
        if part.rows.code is not None:
            arrays["code"] = part.rows.code
        with whole_file(self._path(index)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def holds(self, index: int, mark: str) -> bool:
        """Whether the part is finished, for exactly these files."""
        try:
            with self._path(index).open("rb") as file, np.load(file) as arrays:
                return str(arrays["fingerprint"]) == mark
        except (FileNotFoundError, BadZipFile):
            return False

    def read(self, index: int) -> Part:
        """A finished part."""
        with np.load(self._path(index)) as arrays:
            rows = Rows(
                ids=arrays["id"],
                embedding=arrays.get("embedding"),
                code=arrays.get("code"),
                version=arrays["version"],
                engine=arrays["engine"],
            )
            return Part(rows, [(str(name), str(why)) for name, why in arrays["skipped"]])

    def remove(self) -> None:
        """Forget the run: its output is written."""
        shutil.rmtree(self._folder)

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06d}.npz"


def fingerprint(files: Sequence[Path]) -> str:
    """Digest of names, sizes and modification times; another one means that a file changed."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
            state = (str(file), status.st_size, status.st_mtime_ns)
        except OSError:
            state = (str(file), -1, -1)
        digest.update(repr(state).encode())
    return digest.hexdigest()
