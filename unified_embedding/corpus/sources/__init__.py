"""Where pictures come from: files, folders, globs, tar shards, Parquet; local or s3://.

A picture is found once, as an `Item` that says how to read it again, on any machine; what is
left out is counted by reason.
"""

from unified_embedding.corpus.sources.finding import find
from unified_embedding.corpus.sources.item import Item, PassedOver
from unified_embedding.corpus.sources.reading import Reader, Unreadable
from unified_embedding.errors import InputError

__all__ = ["InputError", "Item", "PassedOver", "Reader", "Unreadable", "find"]
