"""The torch model as one ONNX graph, and the proof that both compute the same."""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper

from unified_embedding.errors import SpecError
from unified_embedding.spec import FEATURES, INPUT, OUTPUT
from unified_embedding.training.model import UnifiedEmbedder

OPSET: Final = 18
"""Has LayerNormalization (17); read by onnxruntime, OpenVINO and TensorRT 10.12 and later."""
MAX_DIFFERENCE: Final = 1e-3
"""Allowed between torch and onnxruntime, both fp32, per value of unit variance."""


def to_onnx(model: UnifiedEmbedder) -> onnx.ModelProto:
    """Trace `model` into the served graph.

    Input `pixels` uint8 [N, S, S, 3], cast before anything else. Outputs `embedding` and
    `features` float32 [N, D]: equal values under two names, because Triton cannot route one
    output both to the client and to the binarizer. BatchNorm is folded into convolutions.
    Equal weights give equal bytes.

    Raises:
        SpecError: a BatchNorm could not be folded, or the first operation is not the cast.
    """
    was_training = model.training
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        _trace(model, path)
        traced = onnx.load(str(path))
    model.train(was_training)
    graph = _without_metadata(traced.graph)
    graph.node.append(helper.make_node("Identity", [OUTPUT], [FEATURES], name=FEATURES))
    embedding, features = graph.output[0], graph.output.add()
    features.CopyFrom(embedding)
    features.name = FEATURES
    _check_operations(graph)
    clean = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="unified_embedding",
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", OPSET)]),
    )
    onnx.checker.check_model(clean, full_check=True)
    return clean


def largest_difference(
    model: UnifiedEmbedder, graph: onnx.ModelProto, pixels: NDArray[np.uint8]
) -> float:
    """Largest absolute difference of torch and onnxruntime on `pixels` uint8 [N, S, S, 3].

    Runs the pictures as one batch and the first alone, so a batch size that was baked in shows.
    """
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    was_training = model.training
    model.eval()
    worst = 0.0
    for batch in (pixels, pixels[:1]):
        with torch.no_grad():
            wanted = model(torch.from_numpy(batch)).numpy()
        for found in session.run([OUTPUT, FEATURES], {INPUT: batch}):
            difference = np.abs(np.asarray(found) - wanted)
            worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max()))
    model.train(was_training)
    return worst


def check_equal(model: UnifiedEmbedder, graph: onnx.ModelProto, pixels: NDArray[np.uint8]) -> float:
    """`largest_difference`, refused above `MAX_DIFFERENCE`. Raises SpecError."""
    difference = largest_difference(model, graph, pixels)
    if not difference <= MAX_DIFFERENCE:
        raise SpecError(
            f"the exported graph differs from the model by {difference:.2g} on real pixels "
            f"(allowed {MAX_DIFFERENCE:g}); this trunk does not export faithfully"
        )
    return difference


def _trace(model: UnifiedEmbedder, path: Path) -> None:
    example = torch.zeros(2, model.size, model.size, 3, dtype=torch.uint8)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The exporter warns about its own internals.
            torch.onnx.export(
                model,
                (example,),
                str(path),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    finally:
        logger.setLevel(level)


def _without_metadata(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The graph alone: the exporter notes file paths and stack traces, which vary by machine."""
    clean = onnx.GraphProto()
    clean.CopyFrom(graph)
    clean.name = "unified_embedder"
    clean.doc_string = ""
    del clean.value_info[:]
    del clean.metadata_props[:]
    entries: list[Any] = [*clean.node, *clean.initializer, *clean.input, *clean.output]
    for entry in entries:
        entry.doc_string = ""
        del entry.metadata_props[:]
    return clean


def _check_operations(graph: onnx.GraphProto) -> None:
    operations = [node.op_type for node in graph.node]
    if operations[0] != "Cast":
        raise SpecError(
            f"the graph starts with {operations[0]}, not with the cast of {INPUT}; "
            "TensorRT reads uint8 only at a network's border"
        )
    if "BatchNormalization" in operations:
        raise SpecError(
            f"{operations.count('BatchNormalization')} BatchNorm layers could not be folded into "
            "a convolution; precision would be lost when they are folded in FP16"
        )
