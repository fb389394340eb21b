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
from unified_embedding.errors import SetupError, shown
from unified_embedding.names import DEFAULT, Names
from unified_embedding.serving import model_config
from unified_embedding.spec import FEATURES

STATIC_MODELS: Final = (DEFAULT.ensemble, DEFAULT.preprocess, DEFAULT.binarizer)
ENGINE: Final = DEFAULT.embedder
RECORD: Final = "engine.json"
_PACKAGED: Final = Path(__file__).parent / "model_repository"
_PYCACHE: Final = shutil.ignore_patterns("__pycache__")


def static_models() -> Path:
    """The folder of the static models: in a wheel a part of it, else the checkout's own."""
    return _PACKAGED if _PACKAGED.is_dir() else ROOT / "model_repository"


def assemble(
    source: Path, into: Path, preprocess_instances: int | None = None, names: Names = DEFAULT
) -> None:
    """Copy the static models into the folder `into`, each whole or not at all.

    What else stands there, an engine above all, is left alone.

    Args:
        source: `static_models()`.
        into: the repository to fill; made when missing.
        preprocess_instances: processes that decode pictures; None keeps the source's number.
        names: of the models in `into`; in `source` they have no prefix.

    Raises:
        ValueError: fewer than one instance, or a configuration is damaged.
    """
    if preprocess_instances is not None and preprocess_instances < 1:
        raise ValueError(f"preprocess needs at least one instance, not {preprocess_instances}")
    into.mkdir(parents=True, exist_ok=True)
    # Beside the repository: Triton reads every folder inside it.
    with tempfile.TemporaryDirectory(prefix=".models-", dir=into.resolve().parent) as staging:
        for name in STATIC_MODELS:
            staged = Path(staging) / name
            shutil.copytree(source / name, staged, ignore=_PYCACHE)
            config = model_config.read(staged)
            if name == DEFAULT.preprocess and preprocess_instances is not None:
                config.instance_group[0].count = preprocess_instances
                model_config.write(staged, config)
            if name == DEFAULT.ensemble and names.prefix:
                for step in config.ensemble_scheduling.step:
                    step.model_name = names.prefix + step.model_name
                model_config.write(staged, config)
            placed = into / (names.prefix + name)
            shutil.rmtree(placed, ignore_errors=True)
            staged.rename(placed)


def fit(repository: Path, dim: int, names: Names = DEFAULT) -> None:
    """Fit the static models of a repository to its embedder of `dim` values.

    An embedder with a prefix gets copies of those without, as they stand in the repository or,
    where there are none, in the package.

    Raises:
        ValueError: a configuration is damaged.
    """
    if names.prefix:
        here = (repository / DEFAULT.ensemble).is_dir()
        assemble(repository if here else static_models(), repository, names=names)
    fit_binarizer(repository / names.binarizer, dim)


def fit_binarizer(folder: Path, dim: int) -> None:
    """Let a binarizer, where there is one, take embeddings of `dim` values.

    A link to another repository's binarizer that takes others becomes a copy.

    Raises:
        ValueError: its configuration is damaged, or has other inputs.
    """
    if not (folder / model_config.FILE).is_file():
        return
    config = model_config.read(folder)
    if [tensor.name for tensor in config.input] != [FEATURES]:
        raise ValueError(f"{folder / model_config.FILE} does not take `{FEATURES}` alone")
    (tensor,) = config.input
    if list(tensor.dims) == [dim]:
        return
    if folder.is_symlink():
        original = folder.resolve()
        folder.unlink()
        shutil.copytree(original, folder)
    tensor.dims[:] = [dim]
    model_config.write(folder, config)


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


def expect(engine: Path, expected: str) -> None:
    """Refuse an engine that is not the expected one.

    Args:
        engine: a folder with a gated engine.
        expected: "VERSION ENGINE" as in the output `version`, or a beginning of it that ends with
            the version, the target or the precision: "c3050c6549f6 openvino-fp32".

    Raises:
        SetupError: it is another one, or was not gated.
    """
    record = gated(engine)
    served = f"{record['version']} {record['engine']}"
    if not re.match(rf"{re.escape(expected)}(?![^ -])", served):
        raise SetupError(
            f"{engine} is {served}, and {shown(expected)} is expected; build the engine with that "
            "embedder, target and precision, or expect this one"
        )


def use_cores(repository: Path, cores: int, names: Names = DEFAULT) -> None:
    """Let a CPU engine compute with `cores` threads, wherever it was built; the bits stay.

    Raises:
        ValueError: fewer than one, or the engine has no threads to set.
    """
    if cores < 1:
        raise ValueError(f"the engine needs at least one core, not {cores}")
    folder = repository / names.embedder
    config = model_config.read(folder)
    if "threads" not in config.parameters:
        raise ValueError(f"{folder} computes on no CPU: it has no threads to set")
    for name in ("threads", "streams"):
        config.parameters[name].string_value = str(cores)
    model_config.write(folder, config)


def gated(engine: Path) -> dict[str, Any]:
    """The record (engine.json) of an engine that passed its gates and was not changed since.

    Raises:
        SetupError: there is none, or a file is not the one that was gated.
    """
    try:
        record: dict[str, Any] = json.loads((engine / "1" / RECORD).read_text())
        files, _ = record["files"], record["gates"]["figures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"{engine} holds no gated engine (1/{RECORD}: {error}); give the folder "
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
        if path.is_file() and path.name != RECORD and "__pycache__" not in path.parts
    )
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
