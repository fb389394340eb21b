"""Files of keys: a line NAME KEY for each, read by the HTTP API and by the gateway."""

import re
from pathlib import Path

from unified_embedding.errors import KeyFileError


def read_pairs(path: Path, key: str, meant: str) -> list[tuple[str, str]]:
    """(name, key) of each line, without comments (from # on) and empty lines.

    Args:
        path: the file.
        key: regular expression of a key.
        meant: what a line holds, for errors.

    Raises:
        KeyFileError: the file is missing, or a line of it is malformed. No error shows a line,
            which may hold a key.
    """
    form = re.compile(rf"([\w.-]{{1,64}})\s+({key})")
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise KeyFileError(f"the file of keys cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if found := form.fullmatch(text):
            pairs.append((found[1], found[2]))
        elif text:
            raise KeyFileError(f"{path}, line {number} is not {meant}")
    return pairs
