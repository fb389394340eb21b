"""Search over packed sign-bit codes: FAISS behind one small interface.

An index is a folder. Its codes are a memory-mapped base, searched exactly or through IVF or
HNSW, and a small tail in memory that takes additions and is always searched exactly.

    index = CodeIndex.create(path, Origin("0123456789ab", "openvino-bf16-..."), dim=1280)
    index.add(ids, codes, origin)
    index.save()
    for hit in CodeIndex.open(path).search(query, origin, k=10).hits(0): ...
"""

try:
    import faiss  # noqa: F401
    import pyarrow  # noqa: F401
except ImportError as missing:
    raise ImportError(
        f"the index needs FAISS and pyarrow ({missing}); "
        "install them with: pip install 'unified-embedding[search]'"
    ) from missing

from unified_embedding.errors import EngineWarning
from unified_embedding.index.checks import Batch
from unified_embedding.index.code_index import CodeIndex, Stored
from unified_embedding.index.header import Header, Settings
from unified_embedding.index.matches import Hit, Matches
from unified_embedding.index.monitor import RecallMonitor
from unified_embedding.index.records import facts
from unified_embedding.origin import Origin

__all__ = [
    "Batch",
    "CodeIndex",
    "EngineWarning",
    "Header",
    "Hit",
    "Matches",
    "Origin",
    "RecallMonitor",
    "Settings",
    "Stored",
    "facts",
]
