"""Who computed a code, which decides what it may be compared with."""

from dataclasses import dataclass, field

from unified_embedding.errors import CodeIndexError, shown


@dataclass(frozen=True)
class Origin:
    """Who computed a code: the embedder's version and the engine that ran it.

    Codes of equal version may be compared. Engines of one version (say bf16 and fp16) round
    differently, so that a measurable share of their bits disagrees.

    Attributes:
        version: of the embedder.
        engine: id of the engine.
        compatible_with: further versions whose stored codes may be searched with these; no part
            of what makes two origins equal.
    """

    version: str
    engine: str
    compatible_with: tuple[str, ...] = field(default=(), compare=False)

    def may_search(self, version: str) -> bool:
        """Whether a query from here may be compared with stored codes of `version`.

        The only rule of that, for clients, `active.json` and every search: they are of one
        version, or the query's embedder declares the other in its spec (`compatible_with`). The
        declaration is one-way, and never lets codes of two versions into one index.
        """
        return version == self.version or version in self.compatible_with

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """Read the server's `version` output, "<spec version> <engine id>".

        Raises:
            CodeIndexError: not two words.
        """
        parts = text.split()
        if len(parts) != 2:
            raise CodeIndexError(f"version {shown(text)} is not '<spec version> <engine id>'")
        return cls(parts[0], parts[1])

    def __str__(self) -> str:
        return f"{self.version} {self.engine}"
