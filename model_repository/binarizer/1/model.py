"""Triton step `binarizer`: embeddings to packed sign-bit codes."""

from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from unified_embedding.codes import pack
from unified_embedding.serving import answers
from unified_embedding.serving.metrics import Metrics
from unified_embedding.serving.parent import end_with_parent


class TritonPythonModel:
    """features FP32 [N, D] -> code UINT8 [N, D / 8]."""

    def initialize(self, args: dict[str, str]) -> None:
        """The process starts."""
        end_with_parent()
        self.metrics = Metrics(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Pack each request by itself: one with NaN or infinity fails alone, never as a code."""
        return answers.each(requests, _code, self.metrics.refused)

    def finalize(self) -> None:
        """The server stops."""
        self.metrics.close()


def _code(request: Any, parameters: Mapping[str, object]) -> list[Any]:
    features = pb_utils.get_input_tensor_by_name(request, "features").as_numpy()
    return [pb_utils.Tensor("code", pack(features))]
