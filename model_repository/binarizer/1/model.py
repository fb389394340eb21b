"""Triton step `binarizer`: embeddings to packed sign-bit codes."""

from typing import Any

import triton_python_backend_utils as pb_utils

from unified_embedding.codes import pack
from unified_embedding.errors import CodeError
from unified_embedding.serving.parent import end_with_parent


class TritonPythonModel:
    """features FP32 [N, D] -> code UINT8 [N, D / 8]."""

    def initialize(self, args: dict[str, str]) -> None:
        """The process starts."""
        end_with_parent()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Pack each request by itself: one with NaN or infinity fails alone, never as a code."""
        return [_answer(request) for request in requests]


def _answer(request: Any) -> Any:
    features = pb_utils.get_input_tensor_by_name(request, "features").as_numpy()
    try:
        code = pack(features)
    except CodeError as error:
        message = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse(error=message)
    return pb_utils.InferenceResponse([pb_utils.Tensor("code", code)])
