"""The backend folder of the embedded Triton: its Python backend, with the stub of this Python.

The wheel keeps the stubs apart, and Triton looks for one beside the backend only. So there is a
folder of links in the environment, made at the first start. Where the server's user may not write
there, as in a container, it is made with the environment:

    python -m unified_embedding.serving.backends
"""

import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from unified_embedding.errors import SetupError


def wheel_root() -> Path | None:
    """The Triton inside the wheel of the extra `serve`; None where it is not installed."""
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent / "tritonserver"
    return root if (root / "bin" / "tritonserver").is_file() else None


def folder(root: Path, environment: Path = Path(sys.prefix)) -> Path:
    """The backend folder in `environment` for the Triton in `root`; made when missing.

    Raises:
        SetupError: there is no stub for this Python, or the folder is missing and cannot be made.
    """
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / minor / "triton_python_backend_stub"
    if not stub.is_file():
        have = sorted(folder.name for folder in (root / "python_backend_stubs").iterdir())
        raise SetupError(
            f"the embedded Triton has no stub for Python {minor}; use one of {', '.join(have)}"
        )
    made = environment / "share" / "unified-embedding" / f"triton-backends-py{minor}"
    try:
        if not _complete(made, stub):
            _make(made, root, stub)
    except OSError as error:
        raise SetupError(
            f"{made} cannot be read or made here ({error.strerror}); whoever may write in this "
            "environment makes it: python -m unified_embedding.serving.backends"
        ) from None
    return made


def _complete(made: Path, stub: Path) -> bool:
    link = made / "python" / stub.name
    return link.exists() and link.resolve() == stub.resolve()


def _make(made: Path, root: Path, stub: Path) -> None:
    made.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=made.parent))
    # Whoever makes it, others serve from it.
    python = staging / "python"
    python.mkdir()
    for each in (staging, python):
        each.chmod(0o755)
    for file in [*(root / "backends" / "python").iterdir(), stub]:
        target = python / file.name
        if target.is_symlink():
            target.unlink()
        target.symlink_to(file.resolve())
    shutil.rmtree(made, ignore_errors=True)
    try:
        staging.rename(made)
    except OSError:  # Another start made the same folder in the meantime.
        shutil.rmtree(staging)
        if not _complete(made, stub):
            raise


def main() -> None:
    """Make the folder."""
    root = wheel_root()
    try:
        if root is None:
            raise SetupError(
                "the embedded Triton is not installed: pip install 'unified-embedding[serve]'"
            )
        print(folder(root))
    except SetupError as error:
        sys.exit(f"backends: {error}")


if __name__ == "__main__":
    main()
