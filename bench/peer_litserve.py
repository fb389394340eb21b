"""The same engine and decoder behind LitServe: the closest thing in plain Python.

    python bench/peer_litserve.py --engine model_repository/embedder --port 9000 --workers 2

Takes {"image": base64}, answers float32 [D] and the packed code as bytes, one after the other.
"""

import base64
import os
from pathlib import Path
from typing import Annotated, Any

import litserve
import typer
from starlette.responses import Response

from unified_embedding.codes import pack
from unified_embedding.image import load_pixels
from unified_embedding.serving.openvino_engine import OpenVinoEngine
from unified_embedding.spec import MAX_BATCH_SIZE, EmbedderSpec

# LitServe waits this long for a batch to fill; 0 makes an idle worker spin on its queue.
BATCH_TIMEOUT_S = 0.001
# By default uvicorn closes a connection that idles for 5 s, perhaps while a request is on its way.
KEEP_ALIVE_S = 600


class EmbedderApi(litserve.LitAPI):  # type: ignore[misc]
    """Decode, one batch through the engine, pack."""

    def __init__(self, engine: Path, precision: str, threads: int) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
        self._engine, self._precision, self._threads = engine, precision, threads

    def setup(self, device: str) -> None:
        """Compile the engine in the worker."""
        self._compiled = OpenVinoEngine(
            self._engine / "1" / "model.xml",
            precision=self._precision,
            threads=self._threads,
            streams=self._threads,
            max_batch_size=MAX_BATCH_SIZE,
        )
        self._preprocessing = EmbedderSpec.load(self._engine / "1").preprocessing

    def decode_request(self, request: dict[str, str]) -> Any:
        """Base64 JPEG to pixels."""
        return load_pixels(base64.b64decode(request["image"]), self._preprocessing)

    def batch(self, inputs: list[Any]) -> Any:
        """Pixels of several requests, as the engine takes them."""
        return inputs

    def predict(self, pixels: list[Any]) -> Any:
        """Embeddings and codes of a batch."""
        embedding = self._compiled.embed(pixels)
        return list(zip(embedding, pack(embedding), strict=True))

    def unbatch(self, output: Any) -> Any:
        """One entry per request."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Bytes: JSON lists of 1,280 floats would cost more than the network hop."""
        embedding, code = output
        return Response(embedding.tobytes() + code.tobytes(), media_type="application/octet-stream")


def main(
    engine: Annotated[Path, typer.Option(help="an installed model_repository/embedder")],
    precision: Annotated[str, typer.Option(help="OpenVINO's inference precision")],
    port: Annotated[int, typer.Option(help="port to listen on, on loopback")],
    workers: Annotated[int, typer.Option(min=1, help="worker processes")] = 1,
) -> None:
    """Serve until terminated; the workers share the cores."""
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    api = EmbedderApi(engine, precision, threads)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=workers, timeout=False, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=port,
        generate_client_file=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
    )


if __name__ == "__main__":
    typer.run(main)
