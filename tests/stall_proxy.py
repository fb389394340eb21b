"""A TCP proxy that can hold back every byte for a while, as a stalled server does."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class StallProxy:
    """Forwards connections from `url` to `target`; the first byte starts its clock."""

    def __init__(self, target: str, stall_after: float, stall_for: float) -> None:
        """Hold everything back from `stall_after` seconds on, for `stall_for` seconds."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._stall = (stall_after, stall_after + stall_for)
        self._first_byte: float | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self._held_for())
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _held_for(self) -> float:
        now = time.monotonic()
        if self._first_byte is None:
            self._first_byte = now
        start, end = self._stall
        age = now - self._first_byte
        return end - age if start <= age < end else 0.0


@contextlib.contextmanager
def stalling(target: str, stall_after: float, stall_for: float) -> Iterator[StallProxy]:
    proxy = StallProxy(target, stall_after, stall_for)
    try:
        yield proxy
    finally:
        proxy.close()
