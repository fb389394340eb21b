"""Lays out a model repository: the static models of this package, and an engine that was gated.

The static `preprocess` has as many instances as are right for a laptop. A GPU embeds faster than
those decode, so a production server runs as many as it has cores for.
"""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from unified_embedding.checkout import ROOT
from unified_embedding.serving.tritonserver import SetupError

STATIC_MODELS: Final = ("unified_embedding", "preprocess", "binarizer")
ENGINE: Final = "embedder"
_RECORD: Final = "engine.json"
_PACKAGED: Final = Path(__file__).parent / "model_repository"
_COUNT: Final = re.compile(r"(instance_group \[ \{ count: )\d+")
_PYCACHE: Final = shutil.ignore_patterns("__pycache__")


def static_models() -> Path:
    """The folder of the static models: in a wheel a part of it, else the checkout's own."""
    return _PACKAGED if _PACKAGED.is_dir() else ROOT / "model_repository"


def assemble(source: Path, into: Path, preprocess_instances: int | None = None) -> None:
    """Copy the static models into the folder `into`, each whole or not at all.

    What else stands there, an engine above all, is left alone.

    Args:
        source: `static_models()`.
        into: the repository to fill; made when missing.
        preprocess_instances: processes that decode pictures; None keeps the source's number.

    Raises:
        ValueError: fewer than one instance, or the configuration names no instance count.
    """
    into.mkdir(parents=True, exist_ok=True)
    # Beside the repository: Triton reads every folder inside it.
    with tempfile.TemporaryDirectory(prefix=".models-", dir=into.resolve().parent) as staging:
        for name in STATIC_MODELS:
            staged = Path(staging) / name
            shutil.copytree(source / name, staged, ignore=_PYCACHE)
            if name == "preprocess" and preprocess_instances is not None:
                _set_instances(staged / "config.pbtxt", preprocess_instances)
            shutil.rmtree(into / name, ignore_errors=True)
            staged.rename(into / name)


def add_engine(engine: Path, into: Path) -> None:
    """Copy a gated engine into the repository `into`, whole or not at all.

    Args:
        engine: the folder `embedder` of a repository where it was built.

    Raises:
        SetupError: it was not gated, or is not what was gated.
    """
    gated(engine)
    with tempfile.TemporaryDirectory(prefix=".engine-", dir=into.resolve().parent) as staging:
        staged = Path(staging) / ENGINE
        shutil.copytree(engine, staged, ignore=_PYCACHE)
        gated(staged)
        shutil.rmtree(into / ENGINE, ignore_errors=True)
        staged.rename(into / ENGINE)


def gated(engine: Path) -> dict[str, Any]:
    """The record (engine.json) of an engine that passed its gates and was not changed since.

    Raises:
        SetupError: there is none, or a file is not the one that was gated.
    """
    try:
        record: dict[str, Any] = json.loads((engine / "1" / _RECORD).read_text())
        files, _ = record["files"], record["gates"]["figures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"{engine} holds no gated engine (1/{_RECORD}: {error}); give the folder "
            "model_repository/embedder that `make engine` wrote"
        ) from None
    found = file_hashes(engine)
    changed = sorted(
        name for name in files.keys() | found.keys() if files.get(name) != found.get(name)
    )
    if changed:
        raise SetupError(
            f"{engine}/{changed[0]} is not the file that was gated; copy the engine again, or "
            "build it anew"
        )
    return record


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` except engine.json, by relative path."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != _RECORD and "__pycache__" not in path.parts
    )
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _set_instances(config: Path, count: int) -> None:
    if count < 1:
        raise ValueError(f"preprocess needs at least one instance, not {count}")
    text, replaced = _COUNT.subn(rf"\g<1>{count}", config.read_text())
    if replaced != 1:
        raise ValueError(f"{config} names {replaced} instance counts, expected one")
    config.write_text(text)
