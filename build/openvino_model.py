"""Triton step `embedder` on OpenVINO, copied into the engine folder as model.py."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from unified_embedding import deadline
from unified_embedding.openvino_engine import OpenVinoEngine
from unified_embedding.serving.parent import end_with_parent


class TritonPythonModel:
    """pixels UINT8 [N, S, S, 3] -> embedding and features, both FP32 [N, D] with equal values."""

    def initialize(self, args: dict[str, str]) -> None:
        """Compile the network."""
        end_with_parent()
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.engine = OpenVinoEngine.configured(
            folder / "model.xml", parameters, config["max_batch_size"]
        )
        self.pace, self.shared_pace = deadline.Pace(), deadline.SharedPace()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all waiting requests as one batch and hand each its rows; drop those too late."""
        # The batch itself, and as much again for the answers' way home.
        refusals = [_refusal(request, 2 * self.pace.seconds) for request in requests]
        rows = iter(self._rows([r for r, no in zip(requests, refusals, strict=True) if no is None]))
        return [next(rows) if refusal is None else refusal for refusal in refusals]

    def finalize(self) -> None:
        """The server stops."""
        self.shared_pace.remove()

    def _rows(self, requests: list[Any]) -> list[Any]:
        if not requests:
            return []
        began = time.monotonic()
        pixels = [
            pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests
        ]
        embedding = self.engine.embed([picture for pictures in pixels for picture in pictures])
        ends = np.cumsum([len(rows) for rows in pixels])
        answers = [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("embedding", rows), pb_utils.Tensor("features", rows)]
            )
            for rows in np.split(embedding, ends[:-1])
        ]
        self.pace.add(time.monotonic() - began)
        self.shared_pace.write(self.pace.seconds)
        return answers


def _refusal(request: Any, needed: float) -> Any:
    """The answer to a request that is too late, else None."""
    text = request.parameters()
    try:
        deadline.check(json.loads(text) if text else {}, needed)
    except deadline.Late as late:
        code, message = pb_utils.TritonError.UNAVAILABLE, str(late)
    except deadline.Malformed as malformed:
        code, message = pb_utils.TritonError.INVALID_ARG, str(malformed)
    else:
        return None
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
