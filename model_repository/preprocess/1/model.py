"""Triton step `preprocess`: encoded pictures to uint8 pixels."""

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from unified_embedding import deadline
from unified_embedding.errors import ImageError
from unified_embedding.image import load_pixels, parse_crops
from unified_embedding.serving.parent import end_with_parent
from unified_embedding.spec import EmbedderSpec


class TritonPythonModel:
    """image BYTES [N, 1] -> pixels UINT8 [N, S, S, 3] and version BYTES [N, 1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the installed embedder's spec, and decode one picture so that imports are done."""
        end_with_parent()
        engine_folder = Path(args["model_repository"]).parent / "embedder" / "1"
        self.preprocessing = EmbedderSpec.load(engine_folder).preprocessing
        engine = json.loads((engine_folder / "engine.json").read_text())
        self.stamp = f"{engine['version']} {engine['engine']}".encode()
        self.pace = deadline.Pace()
        self.engine_pace = deadline.SharedPace()
        example = io.BytesIO()
        Image.new("RGB", (64, 48)).save(example, "JPEG")
        load_pixels(example.getvalue(), self.preprocessing)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: a bad picture fails its own request only."""
        began = time.monotonic()
        # After this batch the engine finishes the one it has, computes this one, and the
        # answers travel.
        needed = self.pace.seconds + 3 * self.engine_pace.read()
        answers = [self._answer(request, needed) for request in requests]
        self.pace.add(time.monotonic() - began)
        return answers

    def _answer(self, request: Any, needed: float) -> Any:
        text = request.parameters()
        parameters = json.loads(text) if text else {}
        try:
            deadline.check(parameters, needed)
            images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0]
            pixels = self._pixels(images, parameters.get("crop"))
        except deadline.Late as error:
            return _refusal(error, pb_utils.TritonError.UNAVAILABLE)
        except (ImageError, deadline.Malformed) as error:
            return _refusal(error, pb_utils.TritonError.INVALID_ARG)
        stamps = np.full((len(images), 1), self.stamp, dtype=np.object_)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("pixels", pixels), pb_utils.Tensor("version", stamps)]
        )

    def _pixels(self, images: Any, crop: object) -> Any:
        boxes = [None] * len(images) if crop is None else parse_crops(str(crop), len(images))
        rows = []
        for row, (image, box) in enumerate(zip(images, boxes, strict=True)):
            try:
                rows.append(load_pixels(image, self.preprocessing, box))
            except ImageError as error:
                raise ImageError(f"image {row}: {error}") from error
        # One picture is the common case, and needs no copy of its pixels.
        return rows[0][None] if len(rows) == 1 else np.stack(rows)


def _refusal(error: Exception, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
