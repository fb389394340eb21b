"""Was the machine busy with something else while a round was measured?

Asked of the kernel, over the cores that this program may use: what its hypervisor took (steal),
what processes other than this program and its children used, how many others wait for a core
between rounds; and of a loop of fixed work before and after each round, whose CPU seconds grow
when the cores get slower and whose wall seconds grow when it has to wait.
"""

import hashlib
import os
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unified_embedding.measure.processes import ProcessTree, cpu_seconds

STOLEN: Final = 0.02
OTHERS: Final = 0.05
"""Shares of the cores' time that a quiet machine may give away."""
SLOWER: Final = 1.1
"""Of the fixed work: its CPU time over the run's median, and its wall time over its CPU time.

Not over the run's best: beside a hypervisor's other guests the cores are hardly ever at their best,
and a slowness that stays leaves a ratio alone.
"""

_STAT: Final = Path("/proc/stat")
# About 20 ms each, and a glance at the run queue after each of them.
_BLOCK: Final = bytes(1 << 24)
_REPEATS: Final = 5


@dataclass(frozen=True)
class Moment:
    """What the machine said between two rounds.

    Attributes:
        at: time.monotonic.
        used: CPU seconds of all processes on the usable cores since the machine started.
        stolen: seconds that the hypervisor gave to others meanwhile.
        own: CPU seconds of this program and the systems that it measures.
        waiting: processes beside this one that run or wait for a core.
        loop_cpu_s, loop_wall_s: of the fixed work. Like `waiting` the median of some glances, as
            a moment's interruption is no load.
    """

    at: float
    used: float
    stolen: float
    own: float
    waiting: float
    loop_cpu_s: float
    loop_wall_s: float


@dataclass(frozen=True)
class Condition:
    """The machine during one round.

    Attributes:
        stolen, others: shares of the cores' time.
        waiting: processes of others, at the quieter end of the round.
        loop_cpu_s: CPU seconds of the fixed work, at the slower end.
        loop_wait: its wall seconds over its CPU seconds, at the slower end.
    """

    stolen: float
    others: float
    waiting: float
    loop_cpu_s: float
    loop_wait: float

    @classmethod
    def between(cls, before: Moment, after: Moment, cores: int) -> "Condition":
        """From the moments around a round."""
        whole = cores * (after.at - before.at)
        others = (after.used - before.used) - (after.own - before.own)
        return cls(
            stolen=(after.stolen - before.stolen) / whole,
            # Clocks of processes tick a hundred times a second.
            others=max(0.0, others / whole),
            waiting=min(before.waiting, after.waiting),
            loop_cpu_s=max(before.loop_cpu_s, after.loop_cpu_s),
            loop_wait=max(one.loop_wall_s / one.loop_cpu_s for one in (before, after)),
        )

    def busy(self, usual: float) -> list[str]:
        """Why the machine was not quiet; empty when it was.

        Args:
            usual: CPU seconds of the fixed work, the run's median.
        """
        slower = self.loop_cpu_s / usual
        signs = {
            f"{self.stolen:.0%} of the cores' time stolen": self.stolen > STOLEN,
            f"others used {self.others:.0%} of the cores' time": self.others > OTHERS,
            f"{self.waiting:.0f} other processes running": self.waiting > 0,
            f"fixed work took {slower:.2f} of its usual CPU time": slower > SLOWER,
            f"fixed work took {self.loop_wait:.2f} of its CPU time": self.loop_wait > SLOWER,
        }
        return [sign for sign, seen in signs.items() if seen]


def look(trees: Sequence[ProcessTree]) -> Moment:
    """The machine now, while none of the measured systems has anything to do.

    Takes about a tenth of a second. `trees` are measured processes; this one's children are
    known.
    """
    cores = os.sched_getaffinity(0)
    # The run queue is the whole machine's: it says nothing about some of its cores.
    whole = len(cores) == os.cpu_count()
    waiting, cpu, wall = [], [], []
    for _ in range(_REPEATS):
        cpu_began, began = time.thread_time(), time.perf_counter()
        hashlib.blake2b(_BLOCK).digest()
        cpu.append(time.thread_time() - cpu_began)
        wall.append(time.perf_counter() - began)
        waiting.append(running(_STAT.read_text()) - 1 if whole else 0)
    used, stolen = used_and_stolen(_STAT.read_text(), cores)
    own = cpu_seconds((ProcessTree(os.getpid()), *trees))
    middle = (statistics.median(values) for values in (waiting, cpu, wall))
    return Moment(time.monotonic(), used, stolen, own, *middle)


def used_and_stolen(stat: str, cores: Collection[int]) -> tuple[float, float]:
    """Seconds that processes used of `cores`, and that the hypervisor stole from them.

    Args:
        stat: /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal, ...
            Interrupts count for nobody, as most are of the measured traffic.
        cores: their numbers.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    used = stolen = 0
    for line in stat.splitlines():
        name, *values = line.split()
        if name in {f"cpu{core}" for core in cores}:
            user, nice, system, _, _, _, _, steal, *_ = map(int, values)
            used, stolen = used + user + nice + system, stolen + steal
    return used / ticks, stolen / ticks


def running(stat: str) -> int:
    """Processes that run or wait for a core, from /proc/stat."""
    (line,) = (line for line in stat.splitlines() if line.startswith("procs_running "))
    return int(line.split()[1])
