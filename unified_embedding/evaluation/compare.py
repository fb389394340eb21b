"""Compare trainings: `python -m unified_embedding.evaluation.compare [CONFIG]`.

Trains every row and seed that is not done, cheap ones first, and writes the page after each. The
same command goes on after an interruption or a kill. Started several times (on a machine with many
cores, or with a GPU that one training does not fill), each process takes the next training that
none has.
"""

from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unified_embedding.evaluation.comparison import page
from unified_embedding.evaluation.comparison.config import load_config
from unified_embedding.evaluation.comparison.measured import (
    measure_all,
    measure_job,
    open_test_set,
)
from unified_embedding.evaluation.comparison.runner import alone, train_next
from unified_embedding.measure.files import write_text
from unified_embedding.training.distributed import join_ranks
from unified_embedding.training.program import resumable


def main(
    config: Annotated[Path, typer.Argument(help="YAML file.")] = Path("configs/compare.yaml"),
    plan: Annotated[bool, typer.Option("--plan", help="Print budget and progress only.")] = False,
    write: Annotated[
        bool, typer.Option("--page", help="Train nothing; write the page of what is done.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("docs/comparison.md"),
    frozen: Annotated[
        str | None, typer.Option(help="Digest of the test set in place of CONFIG's; any: no check.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads for measuring; 0: all cores.")] = 0,
) -> None:
    """Train what is not done, measure what is, and write the page."""
    console = Console()
    with resumable(console, "comparison"):
        wanted = load_config(config)
        if frozen is not None:
            wanted = wanted.model_copy(update={"frozen": frozen})
        if plan:
            typer.echo(page.budget(wanted))
            return
        test_set = cache(partial(open_test_set, wanted, console, threads))
        if not write:
            test_set()  # Rather refused now than after hours of training.
        with join_ranks() as rank:
            job = None if write else train_next(wanted, rank, console)
            while job is not None:
                if job.rate is None:  # A sweep alone shows nothing new.
                    measure_job(wanted, job, test_set())
                    with alone(wanted.out) as ours:
                        if ours:
                            known = measure_all(wanted, test_set, known_only=True)
                            write_text(out, page.render(known))
                job = train_next(wanted, rank, console)
        with alone(wanted.out, wait=True):
            write_text(out, page.render(measure_all(wanted, test_set)))
        console.print(str(out))


if __name__ == "__main__":
    typer.run(main)
