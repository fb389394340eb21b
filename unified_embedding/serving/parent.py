"""A model's process ends when tritonserver is gone.

Triton's Python backend looks after its parent too, but stays for ever where the dead server held
a lock of their shared memory, and ignores SIGTERM. Call it first in a model's `initialize`:

    from unified_embedding.serving.parent import end_with_parent
    end_with_parent()
"""

import os
import signal
import threading
import time
from typing import Final

from unified_embedding.serving import processes

_INTERVAL_S: Final = 0.5


def end_with_parent() -> None:
    """From now on, end this process (SIGKILL) within a second of its tritonserver's end.

    A parent of another name is somebody's own program that runs the model, and is not watched.
    The parent is looked at, and not waited for by PR_SET_PDEATHSIG: that signal comes when the
    thread ends that started this process, and Triton's do so once the model is loaded.
    """
    parent = os.getppid()
    if processes.name(parent) == processes.SERVER:
        threading.Thread(target=_watch, args=(parent,), name="end-with-parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGKILL)
