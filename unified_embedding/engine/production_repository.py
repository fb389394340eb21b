"""The static models of the repository, laid out where a production server reads them.

The checkout's `preprocess` has as many instances as are right for a laptop. A GPU embeds faster
than those decode, so a production server runs as many as it has cores for.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

STATIC_MODELS: Final = ("unified_embedding", "preprocess", "binarizer")
_COUNT: Final = re.compile(r"(instance_group \[ \{ count: )\d+")


def assemble(source: Path, into: Path, preprocess_instances: int | None = None) -> None:
    """Copy the static models into the folder `into`, each whole or not at all.

    What else stands there, an engine above all, is left alone.

    Args:
        source: the checkout's model_repository.
        into: the repository to fill; made when missing.
        preprocess_instances: processes that decode pictures; None keeps the checkout's number.

    Raises:
        ValueError: fewer than one instance, or the configuration names no instance count.
    """
    into.mkdir(parents=True, exist_ok=True)
    # Beside the repository: Triton reads every folder inside it.
    with tempfile.TemporaryDirectory(prefix=".models-", dir=into.resolve().parent) as staging:
        for name in STATIC_MODELS:
            staged = Path(staging) / name
            shutil.copytree(source / name, staged, ignore=shutil.ignore_patterns("__pycache__"))
            if name == "preprocess" and preprocess_instances is not None:
                _set_instances(staged / "config.pbtxt", preprocess_instances)
            shutil.rmtree(into / name, ignore_errors=True)
            staged.rename(into / name)


def _set_instances(config: Path, count: int) -> None:
    if count < 1:
        raise ValueError(f"preprocess needs at least one instance, not {count}")
    text, replaced = _COUNT.subn(rf"\g<1>{count}", config.read_text())
    if replaced != 1:
        raise ValueError(f"{config} names {replaced} instance counts, expected one")
    config.write_text(text)
