"""Options that every program talking to a server has."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from unified_embedding.client import DEFAULT_URL, Connection
from unified_embedding.client import _connection as variables
from unified_embedding.errors import EmbeddingError, ImageError, shown
from unified_embedding.names import DEFAULT

errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
"""What is no result: progress, warnings, failures."""

Url = Annotated[
    str,
    typer.Option(
        help="gRPC address of the server, HOST:PORT or HOST:PORT/MODEL", envvar=variables.URL
    ),
]
Urls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        help="gRPC address of a server, HOST:PORT, or HOST:PORT/MODEL where it has several "
        "embedders; repeat it: the one whose version the index is of is asked",
        envvar=variables.URL,
        show_default=DEFAULT_URL,
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        help="model to ask, where the server has several embedders",
        envvar="UNIFIED_EMBEDDING_MODEL",
        show_default=DEFAULT.ensemble,
    ),
]
HostNames = Annotated[
    list[str] | None,
    typer.Option(
        "--host-name",
        help="name or address by which it is visited, say behind a proxy; repeat it",
        show_default=False,
    ),
]
Roots = Annotated[
    list[Path] | None,
    typer.Option(
        "--root",
        help="folder whose pictures may be shown; by default those that the corpus was made from; "
        "repeat it",
        show_default=False,
    ),
]

_PANEL: Final = "Connection"
_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "tls": (
        Annotated[
            bool,
            typer.Option(
                "--tls",
                envvar=variables.USE_TLS,
                help="connect by TLS, trusting the roots that gRPC brings",
                rich_help_panel=_PANEL,
            ),
        ],
        False,
    ),
    "ca": (
        Annotated[
            Path | None,
            typer.Option(
                "--tls-ca",
                "--root-certificates",
                envvar=variables.CA,
                help="connect by TLS, trusting this PEM file",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "cert": (
        Annotated[
            Path | None,
            typer.Option(
                "--tls-cert",
                "--certificate-chain",
                envvar=variables.CERT,
                help="mutual TLS: PEM file of our certificate",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "key": (
        Annotated[
            Path | None,
            typer.Option(
                "--tls-key",
                "--private-key",
                envvar=variables.KEY,
                help="mutual TLS: PEM file of our key",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
    "token": (
        Annotated[
            str | None,
            typer.Option(
                envvar=variables.TOKEN,
                help="sent with every call as 'authorization: Bearer TOKEN'; better set by its "
                "variable, since other users of a machine see command lines",
                rich_help_panel=_PANEL,
            ),
        ],
        None,
    ),
}


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of TLS and token; it receives them as `connection`."""
    signature = inspect.signature(command)
    own = [value for name, value in signature.parameters.items() if name != "connection"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]

    @wraps(command)
    def connected(*arguments: Any, **values: Any) -> None:
        given = {name: values.pop(name) for name in _OPTIONS if name in values}
        with failing(command.__module__.rpartition(".")[2]):
            connection = Connection.of(**given)
        command(*arguments, connection=connection, **values)

    parameters = [*own, *added]
    connected.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    connected.__annotations__ = {one.name: one.annotation for one in parameters}
    return connected


@contextlib.contextmanager
def failing(program: str) -> Iterator[None]:
    """End a program with the sentence of an error of ours or of the system, and exit code 2."""
    try:
        yield
    except BrokenPipeError:  # Whoever reads what is printed has seen enough.
        raise
    except (EmbeddingError, OSError) as error:
        errors.print(f"{program}: {error}", style="red")
        sys.exit(2)


def read_picture(path: Path) -> bytes:
    """The bytes of a picture that was named. Raises ImageError when there is no such file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"{shown(str(path))} cannot be read ({error.strerror}); name a picture by its path "
            f"from {Path.cwd()}, or by its whole path"
        ) from None
