import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# The build step is run by path, so its modules import one another by bare name.
sys.path.insert(0, str(ROOT / "build"))

# A shell that starts the tests in the background has SIGINT ignored, and every program they
# start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test is timed: a loaded machine gives the same result. The examples are the same in every
# run, so that what passes here passes elsewhere; looking for new ones is `make fuzz`.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT
