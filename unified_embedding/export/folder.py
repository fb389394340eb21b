"""Folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unified_embedding.errors import SpecError
from unified_embedding.spec import SPEC_FILE


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block succeeds.

    An earlier embedder folder at `target` is replaced; anything else there is left alone.

    Raises:
        SpecError: `target` holds something that is not an embedder.
    """
    free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not free and not (target / SPEC_FILE).is_file():
        raise SpecError(f"{target} exists and holds no embedder; choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fresh, old = workplace / "new", workplace / "old"
        fresh.mkdir()
        yield fresh
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(fresh, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
