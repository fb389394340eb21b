"""One picture of a source, and what is told about those that are no items."""

import json
from dataclasses import dataclass, field
from typing import Any, Final

from unified_embedding.corpus.places import shown
from unified_embedding.corpus.text import json_object, printable

FILE: Final = "file"
LISTED: Final = "listed"
TAR: Final = "tar"
PARQUET: Final = "parquet"


@dataclass(frozen=True)
class Item:
    """One picture, and how to read it.

    Attributes:
        id: unique in the corpus: the path as it was named; inside a tar or Parquet file
            followed by "::" and the member's name or the row's number.
        kind: FILE; LISTED, a file that a table named, read only while no link leads there;
            TAR or PARQUET.
        place: path or URI of the file, see `places`.
        offset: TAR, where the member's bytes begin; PARQUET, the row.
        size: TAR, how many bytes; otherwise 0.
        column: PARQUET, the column that holds the bytes.
        metadata: JSON object of what the source says about the picture.
        member: TAR, the member's name; "" in plans of earlier releases.
        problem: why the picture cannot be read, when that was seen already; else "".
    """

    id: str
    kind: str
    place: str
    offset: int = 0
    size: int = 0
    column: str = ""
    metadata: str = "{}"
    member: str = ""
    problem: str = ""

    @property
    def source(self) -> str:
        """Where the picture is, for people: the place without options, and the member or row."""
        if self.kind == PARQUET:
            return f"{shown(self.place)}::{self.offset}"
        if self.kind == TAR:
            return f"{shown(self.place)}::{self.member or self.id.partition('::')[2]}"
        return shown(self.place)


@dataclass
class PassedOver:
    """What a search for pictures left out, or could not use, by reason.

    Attributes:
        counts: how often, by reason.
        names: the first `EXAMPLES` names, by reason.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    EXAMPLES = 100

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count something that was left out."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        names = self.names.setdefault(reason, [])
        if len(names) < self.EXAMPLES:
            names.append(printable(name))

    def facts(self, name: str, facts: dict[str, Any]) -> str:
        """A picture's metadata as JSON; what JSON cannot hold is left out, and counted."""
        try:
            text, changed = json_object(facts)
        except ValueError:
            self.add("metadata that is nested too deeply: left out", name)
            return "{}"
        if changed:
            self.add("metadata with values that JSON cannot hold: replaced by null or U+FFFD", name)
        return text

    def to_json(self) -> str:
        """Count and first names by reason, most frequent first."""
        order = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        told = {one: {"count": self.counts[one], "first": self.names[one]} for one in order}
        return json.dumps(told, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PassedOver":
        """What `to_json` wrote."""
        told = json.loads(text)
        return cls(
            {reason: one["count"] for reason, one in told.items()},
            {reason: one["first"] for reason, one in told.items()},
        )

    def sentences(self) -> list[str]:
        """One line for each reason, with up to three names."""
        return [
            f"{count:,} x {reason} ({', '.join(self.names[reason][:3])}"
            + (", ...)" if count > 3 else ")")
            for reason, count in self.counts.items()
        ]
