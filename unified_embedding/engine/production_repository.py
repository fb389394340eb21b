"""The static models of the repository, laid out where a production server reads them.

The checkout's `preprocess` has as many instances as are right for a laptop. A GPU embeds faster
than those decode, so a production server runs as many as it has cores for.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Final

from unified_embedding.checkout import ROOT
from unified_embedding.names import DEFAULT, Names
from unified_embedding.serving import model_config
from unified_embedding.spec import FEATURES

STATIC_MODELS: Final = (DEFAULT.ensemble, DEFAULT.preprocess, DEFAULT.binarizer)


def assemble(
    source: Path,
    into: Path,
    preprocess_instances: int | None = None,
    names: Names = DEFAULT,
) -> None:
    """Copy the static models into the folder `into`, each whole or not at all.

    What else stands there, an engine above all, is left alone.

    Args:
        source: the checkout's model_repository.
        into: the repository to fill; made when missing.
        preprocess_instances: processes that decode pictures; None keeps the checkout's number.
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
            shutil.copytree(source / name, staged, ignore=shutil.ignore_patterns("__pycache__"))
            if name == DEFAULT.preprocess and preprocess_instances is not None:
                config = model_config.read(staged)
                config.instance_group[0].count = preprocess_instances
                model_config.write(staged, config)
            if name == DEFAULT.ensemble and names.prefix:
                config = model_config.read(staged)
                for step in config.ensemble_scheduling.step:
                    step.model_name = names.prefix + step.model_name
                model_config.write(staged, config)
            placed = into / (names.prefix + name)
            shutil.rmtree(placed, ignore_errors=True)
            staged.rename(placed)


def fit(repository: Path, dim: int, names: Names = DEFAULT) -> None:
    """Fit the static models of a repository to its embedder of `dim` values.

    An embedder with a prefix gets copies of those without, as they stand in the repository or,
    where there are none, in the checkout.

    Raises:
        ValueError: a configuration is damaged.
    """
    if names.prefix:
        here = (repository / DEFAULT.ensemble).is_dir()
        assemble(repository if here else ROOT / "model_repository", repository, names=names)
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
