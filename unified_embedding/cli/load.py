"""Load-test a server with Locust: its options, and those of our users.

unified-embedding load --headless -u 8 -r 8 -t 20s --host 127.0.0.1:8001
unified-embedding load OpenLoop --headless -t 30s --rate 100
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import typer

# Not imported: Locust patches the standard library.
for needed in ("locust", "hdrh", "psutil", "tritonclient"):
    if find_spec(needed) is None:
        raise ModuleNotFoundError(f"No module named {needed!r}", name=needed)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def main(context: typer.Context) -> None:
    """Become Locust with our users; every argument is Locust's."""
    if {"-h", "--help"} & set(context.args):
        _help()
        return
    users = Path(__file__).parent.parent / "load" / "users.py"
    command = [sys.executable, "-m", "locust", "-f", str(users), *context.args]
    os.execv(command[0], command)


def _help() -> None:
    """Locust prints its own help without reading a locustfile, and so without our options."""
    from locust.argument_parser import get_parser

    from unified_embedding.load import settings

    assert settings.add_options
    get_parser().print_help()
