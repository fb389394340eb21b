"""Train an embedder: `python -m unified_embedding.training.train CONFIG [key=value ...]`.

The same command resumes a run that was cut off. Under torchrun it trains data-parallel:
`torchrun --nproc-per-node 8 -m unified_embedding.training.train CONFIG`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml  # type: ignore[import-untyped]
from rich.console import Console

from unified_embedding.training import checkpoint
from unified_embedding.training.allocator import keep_freed_memory
from unified_embedding.training.config import Config, load_config
from unified_embedding.training.distributed import Rank, barrier, join_ranks
from unified_embedding.training.program import resumable
from unified_embedding.training.report import Report
from unified_embedding.training.trainer import Trainer
from unified_embedding.training.validation import Score, validate


def train(config: Config, rank: Rank, console: Console) -> None:
    """Run, or resume, one configured training on this rank.

    Raises:
        TrainingError, SpecError: configuration, data or checkpoint do not fit.
    """
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.compatible_with is not None and rank.first:
        console.print(
            f"compatible with {config.compatible_with.old}; where it has no proxies, it embeds the "
            "training pictures first, once",
            soft_wrap=True,
            highlight=False,
        )
    trainer = Trainer(config, rank)
    try:
        resumed = trainer.resume()
        taken = None
        if not resumed and config.start_from:
            taken = trainer.start_from(Path(config.start_from))
        if not resumed:
            trainer.start_at_class_means(taken or [])
        if rank.first:
            _write_config(config)
        with Report(trainer, console) as report:
            report.opening()
            if resumed:
                report.say(f"resuming {config.run} at step {trainer.step}")
            if taken is not None:
                named = ", ".join(taken) or "none of its proxies"
                report.say(f"starting from {config.start_from} with {named}")
            _loop(trainer, report)
        fingerprint = trainer.fingerprint()
    finally:
        trainer.close()
    console.print(f"rank {rank.number}: weights {fingerprint} after {trainer.step} steps")
    if rank.first:
        last = trainer.run / checkpoint.LAST
        console.print(
            f"python -m unified_embedding.export --checkpoint {last} --out DIR",
            soft_wrap=True,
        )


def _loop(trainer: Trainer, report: Report) -> None:
    for pixels in trainer.pixels():
        step = trainer.step
        result = trainer.run_step(pixels)
        report.stepped(step, result)
        last = trainer.step == trainer.schedule.steps
        every = trainer.config.validation.every
        if last or (every and trainer.step % every == 0):
            if trainer.rank.first:
                _select(trainer, report)
            barrier()
        if result.save or last:
            path = trainer.save()
            report.say(f"{report.losses(step, result)}; {path} holds step {trainer.step}")


def _select(trainer: Trainer, report: Report) -> None:
    """Keep the model when it validates best so far, or when there is nothing to validate on."""
    found: dict[str, Score] = {}
    held_out = trainer.held_out
    if trainer.config.validation.every and len(held_out):
        limit = trainer.config.validation.images
        found = validate(
            trainer.embedder, held_out, trainer.preprocessing, trainer.rank.device, limit
        )
    if found:
        mean = sum(score.float_ for score in found.values()) / len(found)
        report.validated(found, mean)
        trainer.validated = {task: asdict(score) for task, score in found.items()}
        if mean <= trainer.best:
            return
        trainer.best = mean
    trainer.save_best()


def _write_config(config: Config) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    (Path(config.run) / "config.yaml").write_text(text)


def main(
    config: Annotated[Path, typer.Argument(help="YAML file, for instance configs/smoke.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="e.g. schedule.full.steps=100")
    ] = None,
) -> None:
    """Train, or resume, the run that CONFIG describes."""
    console = Console()
    with resumable(console, "training", " from the last checkpoint"):
        loaded = load_config(config, overrides)
        Path(loaded.run).mkdir(parents=True, exist_ok=True)
        with join_ranks() as rank:
            train(loaded, rank, console)


if __name__ == "__main__":
    typer.run(main)
