"""Train what is not done yet, and measure what is. Killed at any moment, it goes on."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from unified_embedding.checkout import ROOT
from unified_embedding.errors import DataError
from unified_embedding.evaluation.comparison.config import CompareConfig
from unified_embedding.evaluation.comparison.jobs import (
    DONE,
    Job,
    check_same,
    chosen_rate,
    in_order,
    old_job,
    training_config,
)
from unified_embedding.evaluation.embedders import open_embedder
from unified_embedding.measure.files import write_json
from unified_embedding.measure.processor import cpu_name
from unified_embedding.measure.provenance import commit
from unified_embedding.training import checkpoint
from unified_embedding.training.distributed import Rank
from unified_embedding.training.train import train


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Try to hold a folder; the system lets go when the process dies, however it dies.

    Yields:
        Whether this process holds it; always True after waiting for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            try:
                yield True
            finally:
                # Forked readers of pictures hold the file too, for as long as they live.
                fcntl.flock(file, fcntl.LOCK_UN)


def train_next(config: CompareConfig, rank: Rank, console: Console) -> Job | None:
    """Train the first job that is neither done nor in the hands of another process.

    Waits where all that is left rests on a run which another process trains. Returns None when
    there is nothing left to begin.

    Raises:
        TrainingError, SpecError, DataError: configuration, data or a finished run do not fit.
    """
    if rank.world > 1:
        raise DataError(
            "a comparison trains each run in one process; start it several times, without torchrun"
        )
    jobs = list(in_order(config))
    while True:
        waiting = False
        for number, job in enumerate(jobs, 1):
            if job.record() is None and not _ready(config, job):
                waiting = True
                continue
            with alone(job.folder) as ours:
                record = job.record()  # Read again: it may have ended just now.
                if record is not None:
                    check_same(config, job, record)
                elif ours:
                    what = f"{job.row.name}, {job.folder.name}"
                    console.print(f"[bold]{number} of {len(jobs)}: {what}[/bold]")
                    _train(config, job, rank, console)
                    return job
        if not waiting:
            return None
        time.sleep(1)


def _ready(config: CompareConfig, job: Job) -> bool:
    """Whether the runs that a job rests on are done: its row's sweep, its old embedder."""
    old = old_job(config, job)
    if old is not None and old.record() is None:
        return False
    return job.rate is not None or chosen_rate(config, job.row) is not None


def _train(config: CompareConfig, job: Job, rank: Rank, console: Console) -> None:
    settings = training_config(config, job)
    job.folder.mkdir(parents=True, exist_ok=True)
    last = job.folder / checkpoint.LAST
    before = checkpoint.read(last)["step"] if last.exists() else 0
    begin = time.process_time()
    train(settings, rank, console)
    spent = time.process_time() - begin
    values = checkpoint.read(last)
    summary, steps = values["summary"], values["step"]
    scores = [one["float_"] for one in summary["validation"].values()]
    if not scores:
        raise DataError("the manifest has nothing to validate on, so no rate can be chosen")
    write_json(
        job.folder / DONE,
        {
            "row": job.row.name,
            "seed": job.seed,
            "rate": settings.schedule.rate,
            "steps": steps,
            "trunk_steps": summary["trunk_steps"],
            "images_of_each_task": summary["trunk_steps"]
            * summary["batch"]
            // len(summary["tasks"]),
            # Of this session's steps: a run that was killed takes no note of its time.
            "cpu_seconds_per_step": spent / max(1, steps - before) if steps > before else None,
            "validation": summary["validation"],
            "score": sum(scores) / len(scores),
            "embedder": open_embedder(str(last)).id,
            "loss_weights": summary["loss_weights"],
            "identity": settings.identity(),
            "commit": commit(ROOT),
            "device": _device(rank),
        },
    )


def _device(rank: Rank) -> str:
    return torch.cuda.get_device_name(rank.device) if rank.device.type == "cuda" else cpu_name()
