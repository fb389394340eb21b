"""Where the package is run from: a checkout, or an installed wheel."""

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""Holds `model_repository`, `models` and `demo` in a checkout; a wheel has none of them there."""

RELEASED: Final = ROOT / "models" / "unified-embedder-lite0"
"""The released embedder, in a checkout."""

IS_CHECKOUT: Final = (ROOT / "pyproject.toml").is_file()
"""False for an installed wheel."""

_CACHE: Final = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
WORK: Final = ROOT if IS_CHECKOUT else Path(_CACHE) / "unified-embedding"
"""Where programs keep what they can make again."""


def program(name: str) -> str:
    """How the program `name` is called here, for messages that advise it."""
    return f"python clients/{name}.py" if IS_CHECKOUT else f"unified-embedding {name}"
