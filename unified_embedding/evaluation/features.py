"""Embeddings on disk, by embedder and by file: evaluating again computes nothing again."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from unified_embedding.errors import DataError, ImageError
from unified_embedding.evaluation.embedders import Embedder
from unified_embedding.whole_files import whole_file

SHARD: Final = 512
"""Pictures between two writes: what an interruption can cost."""


class FeatureCache:
    """A folder of vectors, one subfolder per embedder id.

    Each shard holds `keys` (SHA-256 of picture files, 32 bytes each) and `rows` float32
    [n, D]. Shards are named by their keys and appear whole, so several processes may write.

    Args:
        folder: made when needed.
        console: where progress is shown.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console

    def forget(self, embedder: Embedder) -> None:
        """Delete what was computed with this embedder."""
        if embedder.id is not None:
            shutil.rmtree(self.folder / embedder.id, ignore_errors=True)

    def vectors(
        self,
        embedder: Embedder,
        sha256: Sequence[str],
        read: Callable[[int], bytes],
        label: str,
        names: Sequence[str] | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings float32 [N, D]; what is not cached is computed, `SHARD` by `SHARD`.

        Args:
            embedder: one without an id is never cached.
            sha256: of each picture's file, hex; equal files are embedded once.
            read: row -> encoded bytes.
            label: for the progress bar.
            names: of each picture, for errors.

        Raises:
            DataError: a picture cannot be embedded (ImageError where it has no name).
            ClientError: see `EmbedderClient.embed`.
        """
        known = self._known(embedder)
        missing: dict[bytes, int] = {}
        for row, text in enumerate(sha256):
            key = bytes.fromhex(text)
            if key not in known:
                missing.setdefault(key, row)
        keys = list(missing)
        with Progress(console=self.console, transient=True) as progress:
            bar = progress.add_task(label, total=len(keys), visible=bool(keys))
            for start in range(0, len(keys), SHARD):
                part = keys[start : start + SHARD]
                try:
                    rows = embedder.embed([read(missing[key]) for key in part])
                except ImageError:
                    _name_bad(embedder, [missing[key] for key in part], read, names)
                    raise
                known.update(zip(part, rows, strict=True))
                self._write(embedder, part, rows)
                progress.advance(bar, len(part))
        return np.stack([known[bytes.fromhex(text)] for text in sha256])

    def _known(self, embedder: Embedder) -> dict[bytes, NDArray[np.float32]]:
        known: dict[bytes, NDArray[np.float32]] = {}
        if embedder.id is None:
            return known
        for path in sorted((self.folder / embedder.id).glob("*.npz")):
            try:
                # np.load would leave a damaged file open.
                with path.open("rb") as file, np.load(file) as shard:
                    keys, rows = shard["keys"], shard["rows"]
                known.update((key.tobytes(), row) for key, row in zip(keys, rows, strict=True))
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)  # Damaged: its pictures are embedded again.
        return known

    def _write(self, embedder: Embedder, keys: list[bytes], rows: NDArray[np.float32]) -> None:
        if embedder.id is None:
            return
        folder = self.folder / embedder.id
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        with whole_file(folder / f"{name}.npz") as beside, beside.open("wb") as file:
            np.savez(file, keys=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32), rows=rows)


def _name_bad(
    embedder: Embedder, rows: list[int], read: Callable[[int], bytes], names: Sequence[str] | None
) -> None:
    """Raise DataError for the picture that cannot be embedded, where pictures have names."""
    for row, name in () if names is None else ((row, names[row]) for row in rows):
        try:
            embedder.embed([read(row)])
        except ImageError as error:
            raise DataError(f"{name} cannot be embedded ({error}); replace that file") from error
