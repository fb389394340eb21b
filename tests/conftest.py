import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The build step is run by path, so its modules import one another by bare name.
sys.path.insert(0, str(ROOT / "build"))

# A shell that starts the tests in the background has SIGINT ignored, and every program they
# start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT
