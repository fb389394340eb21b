"""What a run tells while it goes: console, progress bar, losses.csv, TensorBoard, trace."""

import math
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unified_embedding.training.journal import Journal, Table
from unified_embedding.training.losses import NormalizedSoftmax
from unified_embedding.training.trainer import StepResult, Trainer
from unified_embedding.training.validation import Score


class Report:
    """Follows one trainer; every rank has one, but only the first speaks.

    Args:
        trainer: positioned at the first step to come.
        console: where the first rank writes.
    """

    def __init__(self, trainer: Trainer, console: Console) -> None:
        self.trainer = trainer
        self.console = console
        self.first_step = trainer.step
        speaks = trainer.rank.first
        self._journal = (
            Journal(trainer.run, trainer.loss_names, self.first_step) if speaks else None
        )
        self._bar = _progress(console) if speaks else None
        self._trace = (
            Table(
                trainer.run / "trace" / f"rank{trainer.rank.number}.csv", ["image"], self.first_step
            )
            if trainer.config.trace
            else None
        )

    def __enter__(self) -> "Report":
        if self._bar is not None:
            self._bar.start()
            total = self.trainer.schedule.steps
            self._bar.add_task("training", total=total, completed=self.first_step, loss="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._journal is not None:
            self._journal.close()
        if self._trace is not None:
            self._trace.close()

    def say(self, text: str) -> None:
        """A line on the first rank's console."""
        if self.trainer.rank.first:
            self.console.print(text, soft_wrap=True, highlight=False)

    def opening(self) -> None:
        """What will be trained, and the loss that a random guess would have."""
        trainer, plan, schedule = self.trainer, self.trainer.plan, self.trainer.schedule
        if trainer.config.note:
            self.say(trainer.config.note.strip())
        for head in trainer.heads:
            guess = f"; a random guess loses {math.log(head.softmax_classes):.2f}"
            known = type(head.criterion) is NormalizedSoftmax
            self.say(
                f"{head.column}: {head.classes:,} classes, {head.softmax_classes:,} in a softmax"
                f"{guess if known else ''}"
            )
        self.say(
            f"{len(trainer.examples):,} training pictures; {plan.steps_per_epoch} steps of "
            f"{plan.batch} an epoch (padded by {plan.padding}); {schedule.heads} steps of "
            f"proxies alone, {schedule.full} of everything; {trainer.rank.world} process(es) on "
            f"{trainer.rank.device.type}"
        )

    def stepped(self, step: int, result: StepResult) -> None:
        """Note a finished step."""
        schedule = self.trainer.schedule
        if self._trace is not None:
            rows = self.trainer.plan.batch_rows(step)[self.trainer.slots]
            for row in rows:
                self._trace.add(step, [self.trainer.examples.images[row]])
        if self._journal is not None:
            self._journal.losses(
                step, result.losses, schedule.rate(step), schedule.proxy_rate(step)
            )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=1, loss=f"{sum(result.losses):.3f}")
        if step == self.first_step:
            self.say(self.losses(step, result))

    def validated(self, found: dict[str, Score], mean: float) -> None:
        """Note the figures of a validation."""
        step = self.trainer.step
        texts = []
        for task, score in found.items():
            texts.append(f"{task} {score.metric} {score.float_:.3f} (code {score.code:.3f})")
            if self._journal is not None:
                self._journal.figure(f"validation/{task}/float", score.float_, step)
                self._journal.figure(f"validation/{task}/code", score.code, step)
        self.say(f"validation after step {step}: {', '.join(texts)}; mean {mean:.4f}")

    def losses(self, step: int, result: StepResult) -> str:
        """One step's losses as text."""
        pairs = zip(self.trainer.loss_names, result.losses, strict=True)
        return f"step {step}: " + ", ".join(f"{name} {loss:.3f}" for name, loss in pairs)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"),
        console=console,
        transient=True,
    )
