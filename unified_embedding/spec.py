"""What an embedder is: the description that travels with its weights."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from unified_embedding.codes import BIT_RULE, code_bytes
from unified_embedding.errors import ImageError, SpecError, shown
from unified_embedding.image import PREPROCESSING_REVISION, Preprocessing
from unified_embedding.paths import StrPath

SPEC_FILE: Final = "spec.json"
ONNX_FILE: Final = "embedder.onnx"
INT8_FILE: Final = "embedder.int8.onnx"
"""Beside it, where there is one: the same embedder with 8-bit convolutions (`make quantise`)."""
VERSION_KEY: Final = "unified_embedding.version"
"""Key of the version in the ONNX metadata and in Triton's model configuration."""
ENGINE_KEY: Final = "unified_embedding.engine"
"""Key of the engine id in Triton's model configuration."""
COMPATIBLE_KEY: Final = "unified_embedding.compatible_with"
"""Key of `EmbedderSpec.compatible_with` there, joined by blanks; absent where it is empty."""
RANDOM_WEIGHTS: Final = "random"
_VERSION: Final = re.compile("[0-9a-f]{12}")

INPUT: Final = "pixels"
OUTPUT: Final = "embedding"
FEATURES: Final = "features"

MAX_BATCH_SIZE: Final = 16
"""Pictures in one request, at most; every engine takes batches of that size."""


@dataclass(frozen=True)
class EmbedderSpec:
    """Everything needed to use an embedder's vectors correctly.

    Attributes:
        name: folder name of the model, for people.
        trunk: timm name of the trunk, for instance "tf_efficientnet_lite0".
        dim: width D of the embedding, a multiple of 8.
        weights: where the weights come from; "random" marks an untrained trunk.
        graph_sha256: SHA-256 of the ONNX graph, constants included.
        preprocessing: how pictures become pixels.
        license: SPDX expression of the weights' licence.
        compatible_with: versions whose stored codes this embedder's queries may search, as after
            backward-compatible training (Shen et al., CVPR 2020). A statement about the vectors
            that does not change them: no part of the version.
    """

    name: str
    trunk: str
    dim: int
    weights: str
    graph_sha256: str
    preprocessing: Preprocessing
    license: str
    compatible_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        code_bytes(self.dim)
        if len(self.graph_sha256) != 64 or set(self.graph_sha256) - set("0123456789abcdef"):
            raise SpecError(f"graph_sha256 {self.graph_sha256!r} is not a SHA-256 in hex")
        for version in self.compatible_with:
            if not isinstance(version, str) or not _VERSION.fullmatch(version):
                raise SpecError(
                    f"compatible_with holds {shown(version)}, which is no version: give 12 hex "
                    "digits, as `version` of the other embedder's spec.json"
                )

    @property
    def version(self) -> str:
        """Twelve hex digits over weights, preprocessing and bit rule.

        Vectors and codes of equal version may be compared; of different ones never.
        The name, the licence, `compatible_with` and the engine that runs the weights do not enter.
        """
        identity = {
            "graph_sha256": self.graph_sha256,
            "preprocessing": asdict(self.preprocessing),
            "preprocessing_revision": PREPROCESSING_REVISION,
            "bit_rule": BIT_RULE,
        }
        return digest(identity)

    @property
    def code_bytes(self) -> int:
        """Bytes of one packed code, D / 8."""
        return code_bytes(self.dim)

    @property
    def random(self) -> bool:
        """True when the weights are untrained: numbers computed with them mean nothing."""
        return self.weights == RANDOM_WEIGHTS

    def save(self, folder: StrPath) -> None:
        """Write `folder/spec.json`, with the version for readers' convenience."""
        text = json.dumps({"version": self.version, **asdict(self)}, indent=2) + "\n"
        Path(folder, SPEC_FILE).write_text(text)

    @classmethod
    def load(cls, folder: StrPath) -> "EmbedderSpec":
        """Read `folder/spec.json`.

        Raises:
            SpecError: the file is missing, malformed, or states another version than its
                contents have (edited by hand, or written by another revision of the library).
        """
        path = Path(folder, SPEC_FILE)
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            raise SpecError(
                f"{path} does not exist; an embedder folder holds {SPEC_FILE} and {ONNX_FILE} "
                "(python -m unified_embedding.export writes both)"
            ) from None
        except (OSError, ValueError) as error:
            raise SpecError(f"{path} is not readable JSON ({error})") from error
        return cls.from_dict(raw, str(path))

    @classmethod
    def from_dict(cls, raw: object, source: str = SPEC_FILE) -> "EmbedderSpec":
        """Build a spec from decoded JSON; `source` is named in errors. Raises SpecError."""
        if not isinstance(raw, Mapping):
            raise SpecError(f"{source} does not hold a JSON object")
        # A spec of an earlier release has no `compatible_with`.
        stated = {"compatible_with": [], **raw}
        version = stated.pop("version", None)
        try:
            values = _checked(cls, stated)
            values["preprocessing"] = Preprocessing(
                **_checked(Preprocessing, values["preprocessing"])
            )
            values["compatible_with"] = tuple(values["compatible_with"])
            spec = cls(**values)
        except (SpecError, ImageError, TypeError) as error:
            raise SpecError(f"{source}: {error}") from error
        if version != spec.version:
            raise SpecError(
                f"{source} states version {version} but its contents have {spec.version}; "
                "export the model again instead of editing the file"
            )
        return spec


def digest(value: object) -> str:
    """Twelve hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _checked(cls: type, raw: object) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    given = set(raw) if isinstance(raw, Mapping) else set()
    if not isinstance(raw, Mapping) or given != names:
        raise SpecError(
            f"{cls.__name__} needs exactly the fields {sorted(names)}; "
            f"missing {sorted(names - given)}, unknown {sorted(given - names)}"
        )
    return dict(raw)
