"""Typed gRPC clients of the served embedder, blocking and asyncio.

>>> from unified_embedding.client import EmbedderClient
>>> with EmbedderClient("127.0.0.1:8001") as client:
...     answer = client.embed([Path("chair.jpg").read_bytes()])
>>> answer.embedding.shape, answer.code.shape, answer.version
((1, 1280), (1, 160), '3f1c0a9be2d4')

Both clients take lists of any length, and streams (`embed_iter`), split them at the server's
max_batch_size, keep a bounded number of requests in flight, and wait for a server that is being
restarted. Create
one client and share it: it is safe to use from many threads (or tasks), and all calls share
one connection.
Needs tritonclient: pip install 'unified-embedding[client]'.
"""

from unified_embedding.client._aio import AsyncEmbedderClient
from unified_embedding.client._calls import DEFAULT_URL, TLS
from unified_embedding.client._connection import Connection
from unified_embedding.client._metadata import bearer
from unified_embedding.client._results import (
    OUTPUTS,
    Answer,
    Embedded,
    EmbeddedEach,
    ServerInfo,
    StageStatistics,
)
from unified_embedding.client._retry import Retry
from unified_embedding.client._sync import EmbedderClient
from unified_embedding.errors import EngineWarning

__all__ = [
    "DEFAULT_URL",
    "OUTPUTS",
    "TLS",
    "Answer",
    "AsyncEmbedderClient",
    "Connection",
    "Embedded",
    "EmbeddedEach",
    "EmbedderClient",
    "EngineWarning",
    "Retry",
    "ServerInfo",
    "StageStatistics",
    "bearer",
]
