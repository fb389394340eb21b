"""What was asked of `make engine`, kept beside the engine: what is not asked again stays."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from unified_embedding.checkout import RELEASED, ROOT
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.errors import BuildError
from unified_embedding.serving.repository import RECORD


@dataclass(frozen=True)
class Choice:
    """An engine as its user names it.

    Attributes:
        model: embedder folder.
        gallery: pictures that the gates run over.
        target: as in TARGET=.
        precision: as in PRECISION=.
        options: of the TensorRT targets.
    """

    model: Path = RELEASED
    gallery: Path = ROOT / "demo"
    target: str = "auto"
    precision: str = "auto"
    options: PlanOptions = field(default_factory=PlanOptions)

    def __str__(self) -> str:
        return f"MODEL={_short(self.model)} TARGET={self.target} PRECISION={self.precision}"

    @classmethod
    def installed(cls, embedder: Path) -> Self | None:
        """That of the engine in a repository's folder; None where none, or no such record, is."""
        try:
            found = json.loads((embedder / "1" / RECORD).read_text())["choice"]
            options = found.pop("options")
            options["compute_capabilities"] = tuple(options["compute_capabilities"])
            paths = {name: ROOT / found.pop(name) for name in ("model", "gallery")}
            return cls(**found, **paths, options=PlanOptions(**options))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def with_(
        self,
        model: Path | None = None,
        gallery: Path | None = None,
        target: str | None = None,
        precision: str | None = None,
        **options: Any,
    ) -> Self:
        """What is given, and for the rest what stands here.

        TARGET, PRECISION and the options say together how an embedder is compiled: where one of
        the first two is given, what is not given of them is the default.

        Raises:
            BuildError: a folder that stands here and is not given is gone.
            ValueError: an option makes no sense.
        """
        base = self
        if target is not None or precision is not None:
            base = replace(self, target="auto", precision="auto", options=PlanOptions())
        for name, given, folder in (
            ("MODEL=", model, self.model),
            ("--gallery ", gallery, self.gallery),
        ):
            if given is None and not folder.is_dir():
                raise BuildError(
                    f"the engine was built from {folder}, which is gone; name another folder "
                    f"with {name}..."
                )
        known = {name: value for name, value in options.items() if value is not None}
        return replace(
            base,
            model=model or self.model,
            gallery=gallery or self.gallery,
            target=target or base.target,
            precision=precision or base.precision,
            options=replace(base.options, **known),
        )

    def record(self) -> dict[str, Any]:
        """As JSON values; folders of this checkout are relative to it."""
        folders = {name: _short(getattr(self, name)) for name in ("model", "gallery")}
        options = asdict(self.options)
        options["compute_capabilities"] = list(self.options.compute_capabilities)
        return {**asdict(self), **folders, "options": options}


def _short(folder: Path) -> str:
    whole = Path(os.path.abspath(folder))
    return str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole)
