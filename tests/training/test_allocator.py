"""Freed memory stays with the process."""

import subprocess
import sys

PROGRAM = """
import resource
import sys
from unified_embedding.training.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    block = bytearray(64 << 20)
    del block

use()
before = faults()
for _ in range(10):
    use()
print(faults() - before)
"""


def page_faults(how: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


def test_large_blocks_are_reused_without_page_faults() -> None:
    assert page_faults("kept") * 20 < page_faults("as it was")
