"""How a long program ends that goes on where it was: `train`, `evaluate`, `compare`, benchmarks."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from unified_embedding.errors import EmbeddingError


@contextmanager
def resumable(console: Console, what: str, continues: str = "") -> Iterator[None]:
    """End with a sentence and code 1 after an error of ours, 130 after Ctrl-C.

    Args:
        console: where the sentence goes.
        what: the work, which begins the sentence.
        continues: how the same command goes on.
    """
    try:
        yield
    except EmbeddingError as error:
        console.print(f"[red]{what} failed:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command continues{continues}")
        raise typer.Exit(130) from None
