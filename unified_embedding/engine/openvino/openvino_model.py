"""Triton step `embedder` on OpenVINO, copied into the engine folder as model.py."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from unified_embedding.serving import answers
from unified_embedding.serving.backlog import Backlog
from unified_embedding.serving.metrics import ENGINE, Metrics
from unified_embedding.serving.openvino_engine import OpenVinoEngine
from unified_embedding.serving.pace import Admission, Pace, SharedPace
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
        self.admission, self.pace = Admission(), Pace()
        self.shared_pace = SharedPace(args["model_name"])
        self.metrics = Metrics(args["model_name"], ENGINE)
        self.most = config["max_batch_size"]
        self.backlog = Backlog(args["model_name"])
        instances = sum(group["count"] for group in config["instance_group"])
        self.backlog.begin(self.most * instances)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all waiting requests as one batch and hand each its rows; drop those too late."""
        with self.backlog.taken(sum(map(_pictures, requests)), self.most, self.pace.now):
            return answers.together(requests, self._pixels, self._embeddings, self.metrics.refused)

    def finalize(self) -> None:
        """The server stops."""
        self.shared_pace.remove()
        self.backlog.remove()
        self.metrics.close()

    def _pixels(self, request: Any, parameters: Mapping[str, object]) -> NDArray[np.uint8]:
        # The batch itself, and as much again for the answers' way home.
        self.admission.check(parameters, 2 * self.pace.now)
        return _pixels(request)

    def _embeddings(self, batch: list[NDArray[np.uint8]]) -> list[list[Any]]:
        began = time.monotonic()
        embedding = self.engine.embed([picture for pixels in batch for picture in pixels])
        took = time.monotonic() - began
        self.pace.add(took)
        self.metrics.took(ENGINE, took)
        self.shared_pace.write(self.pace.now)
        ends = np.cumsum([len(pixels) for pixels in batch])
        return [
            [pb_utils.Tensor("embedding", rows), pb_utils.Tensor("features", rows)]
            for rows in np.split(embedding, ends[:-1])
        ]


def _pictures(request: Any) -> int:
    # What is wrong with a request is told when it is looked at, to its own caller.
    try:
        return len(_pixels(request))
    except Exception:
        return 0


def _pixels(request: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy()
    return pixels
