"""What a run writes while it goes: losses.csv, TensorBoard, and the pictures of each step."""

import csv
from pathlib import Path
from typing import TextIO

from torch.utils.tensorboard.writer import SummaryWriter

LOSSES = "losses.csv"


class Table:
    """A CSV file with a step column that can be continued after a kill.

    Rows of steps that will be run again, and a last line that was cut off, are removed.

    Args:
        path: file; made when missing.
        columns: names after `step`.
        start: the first step that will be added.
    """

    def __init__(self, path: Path, columns: list[str], start: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        header = ["step", *columns]
        kept = [row for row in _rows(path) if len(row) == len(header) and int(row[0]) < start]
        self._file: TextIO = path.open("w", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(header)
        self._writer.writerows(kept)
        self._file.flush()

    def add(self, step: int, values: list[str]) -> None:
        """Add a row; it is in the file when this returns."""
        self._writer.writerow([step, *values])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = [line for line in file if line.endswith("\n")]
    return list(csv.reader(lines))[1:]


class Journal:
    """losses.csv and TensorBoard of a run; only the first rank keeps one.

    Args:
        run: the run's folder.
        names: of the losses of a step, in order.
        start: the step that comes next.
    """

    def __init__(self, run: Path, names: list[str], start: int) -> None:
        self.names = names
        self._losses = Table(run / LOSSES, names, start)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start)

    def losses(self, step: int, losses: list[float], rate: float, proxy_rate: float) -> None:
        """Note one step. The CSV keeps every bit of a loss."""
        self._losses.add(step, [repr(loss) for loss in losses])
        for name, loss in zip(self.names, losses, strict=True):
            self._board.add_scalar(f"loss/{name}", loss, step)
        self._board.add_scalar("loss/total", sum(losses), step)
        self._board.add_scalar("rate/trunk", rate, step)
        self._board.add_scalar("rate/proxies", proxy_rate, step)

    def figure(self, name: str, value: float, step: int) -> None:
        """Note any other number."""
        self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close both."""
        self._losses.close()
        self._board.close()
