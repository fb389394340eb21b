"""`unified-embedding`: one program with a command for each module named here.

A command's module is imported when the command is called, so that none needs another's extra.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from unified_embedding.checkout import IS_CHECKOUT

PROGRAM: Final = "unified-embedding"
EXTRAS: Final = {
    "embed": "client",
    "backfill": "client",
    "index": "search",
    "search": "search",
    "page": "search,api",
    "status": "client",
    "serve": "serve",
    "api": "api",
    "gateway": "deploy",
    "load": "load",
}
"""The commands, and the extras that each needs."""
_TARGETS: Final = {"search": "search-env", "api": "search-env", "search,api": "search-env"}


def program() -> None:
    """Entry point of `unified-embedding`."""
    _main(PROGRAM, "client", _all)


def run(name: str) -> None:
    """One command as a program of its own. Does not return where its extra is not installed."""
    _main(name, EXTRAS[name], lambda: loaded(name))


def lacking(who: str, extra: str, error: ImportError) -> NoReturn:
    """End the program with one sentence: which extra is missing, and how to install it.

    An import of this package that fails is a mistake of ours, and is raised again.
    """
    if (error.name or "").startswith("unified_embedding"):
        raise error
    remedy = f"pip install 'unified-embedding[{extra}]'"
    if IS_CHECKOUT:
        remedy = f"make {_TARGETS.get(extra, 'env')}"
    reason = error.__cause__ or error
    sys.exit(f"{who}: the extra `{extra}` is not installed here ({reason}); run: {remedy}")


def loaded(name: str) -> Any:
    """The command of a module, with its options. Raises ImportError where its extra is missing."""
    import typer

    module = import_module(f"unified_embedding.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(module.main)
    return typer.main.get_command(app)


def _main(who: str, extra: str, command: Any) -> None:
    try:
        found = command()
    except ImportError as error:
        lacking(who, extra, error)
    found()


def _all() -> Any:
    import typer
    from typer.core import TyperGroup

    class Lazy(TyperGroup):
        """Lists commands by their docstrings, and imports the one that is called."""

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name, command, rest = super().resolve_command(ctx, args)
            if name is not None and command is not None:
                try:
                    command = loaded(name)
                except ImportError as error:
                    lacking(f"{PROGRAM} {name}", EXTRAS[name], error)
            return name, command, rest

    app = typer.Typer(
        cls=Lazy,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Pictures to embeddings and packed codes: serve, embed, index, search, load-test.",
    )
    for name in EXTRAS:
        app.command(name, help=_about(name))(lambda: None)
    return typer.main.get_command(app)


def _about(name: str) -> str:
    """The first line of a module's docstring, without importing it."""
    text = (Path(__file__).parent / f"{name}.py").read_text()
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
