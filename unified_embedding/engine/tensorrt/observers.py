"""TensorRT's log and build progress, brought to where ours go.

Both are subclasses of interfaces of the TensorRT module, which is chosen at run time; so they
are made by functions that take it.
"""

import functools
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from rich import progress as rich_progress
from rich.console import Console

BUILD_LOGGER: Final = "tensorrt.build"
PARSER_LOGGER: Final = "tensorrt.parser"
"""What the parser says while it parses; its errors come back with node names anyway."""


@functools.cache
def log(trt: Any) -> Any:
    """The one TensorRT logger of a module, writing to the Python logger `BUILD_LOGGER`.

    TensorRT keeps the first logger it is given and warns about every other one.
    """
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.CRITICAL,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.INFO,
        trt.ILogger.VERBOSE: logging.DEBUG,
    }

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.channel = BUILD_LOGGER

        def log(self, severity: Any, message: str) -> None:
            logging.getLogger(self.channel).log(levels[severity], "%s", message)

    return Log()


@contextmanager
def parsing(log: Any) -> Iterator[None]:
    """Send messages to `PARSER_LOGGER` meanwhile."""
    log.channel = PARSER_LOGGER
    try:
        yield
    finally:
        log.channel = BUILD_LOGGER


class Progress:
    """Shows the phases of a build while it runs, and lets SIGINT end it.

    TensorRT calls the monitor from threads of its own, where a KeyboardInterrupt would abort
    the process; so SIGINT only sets a flag, which the next completed step reports back.

    Attributes:
        monitor: the object for IBuilderConfig.progress_monitor.
    """

    def __init__(self, trt: Any, console: Console) -> None:
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._stop = threading.Event()
        self._previous: Any = None
        self.monitor = _monitor(trt, self._bars, self._stop)

    @property
    def interrupted(self) -> bool:
        """True when SIGINT arrived during the build."""
        return self._stop.is_set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            signal.signal(signal.SIGINT, lambda *_: self._stop.set())
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


def _monitor(trt: Any, bars: rich_progress.Progress, stop: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, rich_progress.TaskID] = {}
            self.depth: dict[str, int] = {}
            self.lock = threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self.lock:
                depth = self.depth.get(parent or "", -1) + 1
                self.depth[name] = depth
                self.tasks[name] = bars.add_task("  " * depth + name, total=steps)

        def step_complete(self, name: str, step: int) -> bool:
            with self.lock:
                if name in self.tasks:
                    bars.update(self.tasks[name], completed=step + 1)
            return not stop.is_set()

        def phase_finish(self, name: str) -> None:
            with self.lock:
                if name in self.tasks:
                    bars.remove_task(self.tasks.pop(name))

    return Monitor()
