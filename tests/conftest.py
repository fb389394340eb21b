import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The build step is run by path, so its modules import one another by bare name.
sys.path.insert(0, str(ROOT / "build"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT
