"""What the Triton models of one embedder are called.

Embedders that stand in one repository differ in a prefix: `v2-embedder` belongs to
`v2-unified_embedding`. Without a prefix the names are those of the wire contract.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from unified_embedding.errors import SettingsError, shown

_PREFIX: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})?")
_ENSEMBLE: Final = "unified_embedding"


@dataclass(frozen=True)
class Names:
    """The model names of one embedder, which are those of the models' folders too.

    Raises:
        SettingsError: the prefix is not up to 64 letters, digits, dots, hyphens and underscores,
            or begins with one of the last three.
    """

    prefix: str = ""

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise SettingsError(
                f"prefix {shown(self.prefix)}: give up to 64 letters, digits, dots, hyphens and "
                "underscores, a letter or digit first"
            )

    @classmethod
    def of(cls, ensemble: str) -> Self:
        """The names of the embedder whose ensemble, the model that is asked, has this name.

        Raises:
            SettingsError: no ensemble of this project has such a name.
        """
        if not ensemble.endswith(_ENSEMBLE):
            raise SettingsError(
                f"model {shown(ensemble)}: give the name of an ensemble, {_ENSEMBLE!r} with the "
                "embedder's prefix before it"
            )
        return cls(ensemble.removesuffix(_ENSEMBLE))

    @classmethod
    def of_preprocess(cls, model: str) -> Self:
        """The names of the embedder whose first step has this name."""
        return cls(model.removesuffix(cls().preprocess))

    @classmethod
    def in_repository(cls, repository: Path) -> list[Self]:
        """The embedders of a model repository, by the ensembles that stand in it."""
        folders = sorted(repository.glob(f"*{_ENSEMBLE}"))
        prefixes = [folder.name.removesuffix(_ENSEMBLE) for folder in folders if folder.is_dir()]
        return [cls(prefix) for prefix in prefixes if _PREFIX.fullmatch(prefix)]

    @property
    def ensemble(self) -> str:
        """Pictures to embedding and code; the model that clients ask."""
        return f"{self.prefix}{_ENSEMBLE}"

    @property
    def preprocess(self) -> str:
        """Pictures to pixels."""
        return f"{self.prefix}preprocess"

    @property
    def embedder(self) -> str:
        """Pixels to embeddings: the engine."""
        return f"{self.prefix}embedder"

    @property
    def binarizer(self) -> str:
        """Embeddings to packed codes."""
        return f"{self.prefix}binarizer"

    @property
    def models(self) -> tuple[str, str, str, str]:
        """All of them: the steps in a request's order, then the ensemble."""
        return self.preprocess, self.embedder, self.binarizer, self.ensemble


DEFAULT: Final = Names()
"""Those of the wire contract."""
