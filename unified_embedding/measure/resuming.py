"""A long run of several steps: interrupted, it goes on with the step that was not finished."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_embedding.measure.files import write_json


def left(steps: Sequence[str], file: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """The steps that an interrupted run with the same settings left, or all of them.

    A step counts as done when the next one is asked for. `file` holds which are, until all of
    `steps` are: what follows a whole run is a whole run.

    Args:
        steps: in their order.
        file: where they are noted.
        settings: JSON values on which the steps' results depend.
    """
    done = _noted(file, settings)
    for step in [one for one in steps if one not in done] or steps:
        yield step
        done.append(step)
        write_json(file, {"settings": settings, "done": done})
    others = [one for one in done if one not in steps]
    if others:
        write_json(file, {"settings": settings, "done": others})
    else:
        file.unlink(missing_ok=True)


def _noted(file: Path, settings: Mapping[str, Any]) -> list[str]:
    try:
        noted = json.loads(file.read_text())
        return list(noted["done"]) if noted["settings"] == settings else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
