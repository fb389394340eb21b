"""Who computed a code, which decides what it may be compared with."""

from dataclasses import dataclass

from unified_embedding.errors import CodeIndexError, shown


@dataclass(frozen=True)
class Origin:
    """Who computed a code: the embedder's version and the engine that ran it.

    Codes of equal version may be compared. Engines of one version (say bf16 and fp16) round
    differently, so that a measurable share of their bits disagrees.
    """

    version: str
    engine: str

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """Read the server's `version` output, "<spec version> <engine id>".

        Raises:
            CodeIndexError: not two words.
        """
        parts = text.split()
        if len(parts) != 2:
            raise CodeIndexError(f"version {shown(text)} is not '<spec version> <engine id>'")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.version} {self.engine}"
