"""Triton step `preprocess`: encoded pictures to uint8 pixels."""

import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from unified_embedding.errors import ImageError
from unified_embedding.image import Box, Limits, load_pixels, measure, parse_crops
from unified_embedding.names import Names
from unified_embedding.serving import answers
from unified_embedding.serving.backlog import Backlog
from unified_embedding.serving.metrics import DECODE, INFO, Metrics, show_server
from unified_embedding.serving.pace import Admission, Pace, SharedPace
from unified_embedding.serving.parent import end_with_parent
from unified_embedding.serving.spans import Spans
from unified_embedding.serving.workload import LargeRequests
from unified_embedding.spec import MAX_BATCH_SIZE, EmbedderSpec

# What a picture costs besides its pixels, in pixels.
OVERHEAD = 200_000


class TritonPythonModel:
    """image BYTES [N, 1] -> pixels UINT8 [N, S, S, 3] and version BYTES [N, 1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the installed embedder's spec, and decode one picture so that imports are done."""
        end_with_parent()
        embedder = Names.of_preprocess(args["model_name"]).embedder
        engine_folder = Path(args["model_repository"]).parent / embedder / "1"
        self.preprocessing = EmbedderSpec.load(engine_folder).preprocessing
        engine = json.loads((engine_folder / "engine.json").read_text())
        self.stamp = f"{engine['version']} {engine['engine']}".encode()
        config = json.loads(args["model_config"])
        settings = {key: one["string_value"] for key, one in config.get("parameters", {}).items()}
        self.limits = Limits.from_settings(settings, os.environ)
        self.large = LargeRequests(self.limits)
        self.admission, self.pace, self.engine_pace = Admission(), Pace(), SharedPace(embedder)
        self.backlog = Backlog(embedder)
        example = io.BytesIO()
        Image.new("RGB", (64, 48)).save(example, "JPEG")
        load_pixels(example.getvalue(), self.preprocessing)
        self.spans = Spans(args["model_name"])
        self.metrics = Metrics(args["model_name"], DECODE)
        labels = {"model": embedder, "version": engine["version"], "engine": engine["engine"]}
        self.metrics.show(INFO, lambda: 1.0, labels)
        show_server(self.metrics)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: a bad picture fails its own request only."""
        return answers.each(requests, self._tensors, self.metrics.refused)

    def finalize(self) -> None:
        """The server stops."""
        self.metrics.close()
        self.spans.close()

    def _tensors(self, request: Any, parameters: Mapping[str, object]) -> list[Any] | answers.Later:
        # What is late is not even looked at.
        self._check(parameters, 0, let_in=False)
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()[:, 0]
        if not 1 <= len(images) <= MAX_BATCH_SIZE:
            raise ImageError(f"the request has {len(images)} images; send 1 to {MAX_BATCH_SIZE}")
        crop = parameters.get("crop")
        boxes: list[Box | None] = [None] * len(images)
        if crop is not None:
            boxes = parse_crops(str(crop), len(images))
        cost = sum(self._each(measure, images, boxes))
        self.limits.check_request(sum(map(len, images)), cost)
        work = cost + OVERHEAD * len(images)
        context = self.spans.context(request)
        decoded = partial(self._decoded, images, boxes, parameters, work, context)
        if not self.large.takes(cost):
            return decoded()
        self._check(parameters, work + self.large.held, let_in=False)
        return answers.Later(partial(self.large.put, cost), decoded)

    def _decoded(
        self,
        images: Any,
        boxes: list[Box | None],
        parameters: Mapping[str, object],
        work: int,
        context: Any,
    ) -> list[Any]:
        with self.backlog.place(len(images)):
            self._check(parameters, work)
            began = time.monotonic()
            rows = self._each(partial(self._pixels, context), images, boxes)
        self.pace.add((time.monotonic() - began) / work)
        # One picture is the common case, and needs no copy of its pixels.
        pixels = rows[0][None] if len(rows) == 1 else np.stack(rows)
        stamps = np.full((len(images), 1), self.stamp, dtype=np.object_)
        return [pb_utils.Tensor("pixels", pixels), pb_utils.Tensor("version", stamps)]

    def _pixels(
        self, context: Any, image: bytes, preprocessing: Any, box: Box | None, limits: Any
    ) -> Any:
        offset, moments = time.time_ns() - time.monotonic_ns(), [time.monotonic_ns()]

        def decoded_now() -> None:
            moments.append(time.monotonic_ns())

        pixels = load_pixels(image, preprocessing, box, limits, decoded_now)
        began, decoded, ended = *moments, time.monotonic_ns()
        self.metrics.took(DECODE, (decoded - began) / 1e9)
        self.spans.add(
            context,
            ("decode", offset + began, offset + decoded),
            ("resize", offset + decoded, offset + ended),
        )
        return pixels

    def _check(self, parameters: Mapping[str, object], work: int, *, let_in: bool = True) -> None:
        # After it the engine finishes the batch it has, computes this one, and the answers travel.
        # Where requests queue, those behind have more time left: it costs nothing to let in only
        # who is in time even if the batches take twice as long.
        batches = 6 if self.backlog.crowded else 3
        needed = work * self.pace.now + batches * self.engine_pace.read()
        self.admission.check(parameters, needed, let_in=let_in)

    def _each(
        self, function: Callable[..., Any], images: Iterable[bytes], boxes: Iterable[Box | None]
    ) -> list[Any]:
        found = []
        for row, (image, box) in enumerate(zip(images, boxes, strict=True)):
            try:
                found.append(function(image, self.preprocessing, box, self.limits))
            except ImageError as error:
                raise ImageError(f"image {row}: {error}") from error
        return found
