"""The frozen test set: written once, and refused ever after when a file or a label changed."""

import csv
import io
from pathlib import Path
from typing import Final

from unified_embedding.errors import DataError
from unified_embedding.protocols.held_out import HeldOut
from unified_embedding.whole_files import write_whole

_SHOWN: Final = 3


def frozen_file(manifest: Path) -> Path:
    """Where a manifest's frozen test set is kept: beside it."""
    return manifest.with_name(f"{manifest.stem}.frozen.csv")


def seen_file(path: Path) -> Path:
    """Beside a frozen test set: which of its pictures show what training saw."""
    return path.with_name(f"{path.stem}-seen.csv")


def check(pictures: HeldOut, path: Path, published: str | None = None) -> bool:
    """Hold a test set against the frozen one; freeze it when none is there yet.

    Args:
        pictures: as they are now.
        path: of the frozen test set.
        published: digest of the test set behind published figures, to be met as well.

    Returns:
        True when this call froze it.

    Raises:
        DataError: a picture or label was added, removed or changed; the message names some.
    """
    if published and published != pictures.digest():
        raise DataError(
            f"the test set has digest {pictures.digest()}, but the published figures were "
            f"measured on {published}. Pictures are rendered on this machine and may differ from "
            "one library version to another: prepare the data again with the pinned versions, or "
            "pass --frozen any to measure on these pictures, which cannot be compared with the "
            "published figures"
        )
    new = _hold(pictures.table(), path)
    _hold(pictures.seen_table(), seen_file(path))
    return new


def _hold(now: str, path: Path) -> bool:
    """Compare with the frozen table; True when this call wrote it."""
    if not path.exists():
        write_whole(path, now)
        return True
    before = path.read_text()
    if now != before:
        raise DataError(
            f"the test set is not the one frozen in {path}: {_changes(before, now)}. Figures on "
            "changed queries cannot be compared; prepare the data again, or delete that file to "
            "start a new series of measurements"
        )
    return False


def _changes(before: str, now: str) -> str:
    old, new = _by_image(before), _by_image(now)
    kinds = {
        "missing": [image for image in old if image not in new],
        "new": [image for image in new if image not in old],
        "changed": [image for image in old if image in new and old[image] != new[image]],
    }
    return (
        "; ".join(
            f"{len(images)} {kind} ({', '.join(images[:_SHOWN])}{', ...' * (len(images) > _SHOWN)})"
            for kind, images in kinds.items()
            if images
        )
        or "the same pictures, listed otherwise"
    )


def _by_image(table: str) -> dict[str, tuple[str, ...]]:
    return {row[0]: tuple(row[1:]) for row in csv.reader(io.StringIO(table)) if row}
