"""The checkout that this package is run from: for programs that are about the project itself."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""Holds `model_repository`, `models` and `demo`; an installed wheel has none of them there."""
