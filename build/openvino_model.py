"""Triton step `embedder` on OpenVINO, copied into the engine folder as model.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """pixels UINT8 [N, S, S, 3] -> embedding and features, both FP32 [N, D] with equal values."""

    def initialize(self, args: dict[str, str]) -> None:
        """Compile the network and run every batch size once: a new shape costs tens of ms."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        compiled = ov.Core().compile_model(
            folder / "model.xml",
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": parameters["inference_precision"],
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": parameters["threads"],
            },
        )
        self.request = compiled.create_infer_request()
        shape = config["input"][0]["dims"]
        for batch in range(1, config["max_batch_size"] + 1):
            self._embed(np.zeros((batch, *map(int, shape)), dtype=np.uint8))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all waiting requests as one batch and hand each its rows."""
        pixels = [
            pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests
        ]
        embedding = self._embed(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
        ends = np.cumsum([len(rows) for rows in pixels])
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("embedding", rows), pb_utils.Tensor("features", rows)]
            )
            for rows in np.split(embedding, ends[:-1])
        ]

    def _embed(self, pixels: Any) -> Any:
        self.request.infer([pixels], share_inputs=True)
        return self.request.get_output_tensor(0).data
