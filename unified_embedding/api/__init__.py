"""The HTTP API: OpenAI's embeddings route for pictures, search, health and metrics.

A stateless front of one or several gRPC servers (extra: api). `app.Api` is the ASGI application.
"""

try:
    import msgspec  # noqa: F401
    import prometheus_client  # noqa: F401
    import pybase64  # noqa: F401
    import starlette  # noqa: F401
except ImportError as missing:
    raise ImportError(
        f"the HTTP API needs Starlette, msgspec, pybase64 and prometheus-client ({missing}); "
        "install them with: pip install 'unified-embedding[api]'"
    ) from missing
