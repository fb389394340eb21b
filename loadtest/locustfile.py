"""Load test of the served embedder over gRPC with real pictures.

locust -f loadtest/ --headless -u 8 -r 8 -t 20s --host 127.0.0.1:8001
locust -f loadtest/ OpenLoop --headless -t 30s --rate 100
"""

from unified_embedding.load.users import ClosedLoop, OpenLoop

__all__ = ["ClosedLoop", "OpenLoop"]
