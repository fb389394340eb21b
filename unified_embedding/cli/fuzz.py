"""`make fuzz`: malformed input of every kind, and what must hold beside it.

The targets inside one process get two fifths of the time, a real server the rest. Each case is
a function of the seed and its number, so a run can be done again; what broke a promise is kept
as a file in out/fuzz for `make fuzz REPLAY=file`.
"""

import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unified_embedding.checkout import ROOT
from unified_embedding.fuzzing import in_process
from unified_embedding.fuzzing.cases import TARGETS
from unified_embedding.serving.local_server import end_in_order

OUT: Final = ROOT / "out" / "fuzz"
REPOSITORY: Final = ROOT / "model_repository"
_INSIDE: Final = 0.4

console = Console(width=120)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.command()
def run(
    minutes: Annotated[float, typer.Option(help="Minutes in total.")] = 1.0,
    seed: Annotated[int, typer.Option(help="A different seed draws different cases.")] = 0,
    only: Annotated[str, typer.Option(help=f"Some of {', '.join(TARGETS)}, server.")] = "",
    repository: Annotated[Path, typer.Option(help="What the server serves.")] = REPOSITORY,
    out: Annotated[Path, typer.Option(help="Folder for inputs that broke a guarantee.")] = OUT,
) -> None:
    """Fuzz, print what became of the cases, and exit with 1 when a promise did not hold."""
    wanted = only.split(",") if only else [*TARGETS, "server"]
    unknown = [name for name in wanted if name not in (*TARGETS, "server")]
    if unknown:
        raise typer.BadParameter(f"--only {unknown[0]}: use some of {', '.join(TARGETS)}, server")
    names = [name for name in TARGETS if name in wanted]
    share = 0.0 if not names else _INSIDE if "server" in wanted else 1.0
    held = True
    if names:
        held = _inside(names, minutes * 60 * share, seed, out)
    if "server" in wanted:
        from unified_embedding.fuzzing import campaign

        seconds = minutes * 60 * (1 - share)
        held &= campaign.report(
            console, campaign.run(repository, seconds, seed, out), seconds, seed
        )
    sys.exit(0 if held else 1)


@app.command()
def replay(file: Path, repository: Path = REPOSITORY, out: Path = OUT) -> None:
    """Run one saved breach again; a file that is not a saved breach is decoded as a picture."""
    target, case = in_process.load(file)
    try:
        if target == "server":
            from unified_embedding.fuzzing import campaign

            why = campaign.replay(case, repository, out)
        else:
            print(TARGETS[target].check(case))
            why = ""
    except Exception:
        why = traceback.format_exc()
    if why:
        console.print(f"[red]breach:[/] {escape(why)}", highlight=False)
    sys.exit(1 if why else 0)


@app.command(hidden=True)
def worker(target: str, seed: int, first: int, seconds: float, journal: Path) -> None:
    """Run cases of one target; the parent watches this process."""
    in_process.worker(target, seed, first, seconds, journal)


@app.command(hidden=True)
def sender(grpc: str, http: str, seed: int, part: int, seconds: float, out: Path) -> None:
    """Send malformed requests to a server."""
    from unified_embedding.fuzzing import campaign

    campaign.sender(grpc, http, seed, part, seconds, out)


def _inside(names: list[str], seconds: float, seed: int, out: Path) -> bool:
    """Fuzz the targets two at a time, print what became of them; True when nothing broke."""
    share = seconds * 2 / len(names) if len(names) > 1 else seconds
    with ThreadPoolExecutor(2) as pool:
        tallies = list(pool.map(lambda name: in_process.run(name, seed, share, out), names))
    table = Table(title=f"inside one process, seed {seed}")
    for column in ("target", "cases", "answered", "refused", "breaches"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for name, tally in zip(names, tallies, strict=True):
        counts = tally.outcomes
        figures = (counts.total(), counts["answered"], counts["refused"], counts["breach"])
        table.add_row(name, *(f"{figure:,}" for figure in figures))
    console.print(table)
    for tally in tallies:
        for kind, path in tally.breaches.items():
            console.print(f"[red]breach:[/] {escape(kind)}\n  {path}", highlight=False)
    return not any(tally.breaches for tally in tallies)


def program() -> None:
    """Parse the command line and run."""
    end_in_order()
    app()


if __name__ == "__main__":
    program()
