"""What is often done today: FastAPI, torch eager in fp32, one picture at a time.

    python bench/peer_fastapi.py --trunk tf_efficientnet_lite0 --port 9000

Takes the picture as the request's body, answers JSON.
"""

from typing import Annotated, Any

import torch
import typer
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from unified_embedding.codes import pack
from unified_embedding.export.export import zero_shot
from unified_embedding.image import Preprocessing, load_pixels

# By default uvicorn closes a connection that idles for 5 s, perhaps while a request is on its way.
KEEP_ALIVE_S = 600


def main(
    trunk: Annotated[str, typer.Option(help="timm name of the trunk")],
    port: Annotated[int, typer.Option(help="port to listen on, on loopback")],
) -> None:
    """Serve until terminated."""
    model = zero_shot(trunk).model
    preprocessing = Preprocessing()
    app = FastAPI()

    @app.post("/embed")
    async def embed(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(answer, await request.body())

    def answer(image: bytes) -> dict[str, Any]:
        pixels = load_pixels(image, preprocessing)
        with torch.inference_mode():
            embedding = model(torch.from_numpy(pixels[None])).numpy()
        return {"embedding": embedding[0].tolist(), "code": pack(embedding)[0].tolist()}

    uvicorn.run(
        app, host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=KEEP_ALIVE_S
    )


if __name__ == "__main__":
    typer.run(main)
