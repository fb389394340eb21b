"""What the tests of sources share: tar files from bytes, and what a search found."""

import io
import json
import tarfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from unified_embedding.corpus.sources import Item, PassedOver, Reader, Unreadable, find


def write_tar(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isfile():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def contents(items: list[Item], limit: int = 1_000_000) -> list[bytes | Unreadable]:
    with closing(Reader(limit)) as reader:
        return reader.read(items)


def searched(
    *inputs: str | Path, **options: Any
) -> tuple[dict[str, tuple[bytes | str, dict[str, Any]]], dict[str, list[str]]]:
    """By id the bytes, or why there are none, and the metadata; and what was passed over."""
    passed = PassedOver()
    items = list(find([str(one) for one in inputs], passed=passed, **options))
    found = {}
    for item, data in zip(items, contents(items), strict=True):
        json.dumps(vars(item)).encode("ascii")
        "".join((item.id, item.place, item.metadata, item.source)).encode()
        facts = json.loads(item.metadata, parse_constant=lambda name: 1 / 0)
        found[item.id] = (data.reason if isinstance(data, Unreadable) else data, facts)
    return found, passed.names
