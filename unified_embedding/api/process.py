"""The process around the application: its socket, its signals and its end."""

import asyncio
import signal
from types import FrameType

import uvicorn

from unified_embedding.api.app import Api


def serve(api: Api, host: str, port: int, drain: float = 0.0) -> None:
    """Serve until SIGTERM or SIGINT; returns when it ended in order.

    First it is not ready for `drain` seconds, so that balancers look elsewhere; then it takes no
    new connections and answers what is under way. A second signal does not wait.
    """
    config = uvicorn.Config(
        api, host=host, port=port, log_level="warning", access_log=False,
        # Longer than the pools of proxies and SDKs keep a connection: they close it, not we at the
        # moment when a request is on its way.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(api.settings.timeout) + 1, server_header=False,
    )  # fmt: skip
    _Server(config, api, drain).run()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, api: Api, drain: float) -> None:
        super().__init__(config)
        self._api, self._drain = api, drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not uvicorn's own, which dies of the signal in the end."""
        if self.should_exit or self._api.draining:
            self.should_exit = self.force_exit = True
            return
        self._api.draining = True
        if self._drain and sig == signal.SIGTERM:
            asyncio.get_running_loop().call_later(self._drain, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        self.should_exit = True
