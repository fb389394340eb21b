import sys
from pathlib import Path

# The benchmarks are run by path, so their modules import one another by bare name.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
