"""FRONTEND=torch-tensorrt: the FP16 graph through torch.export and Torch-TensorRT.

Needs a GPU: Torch-TensorRT asks for the device while it is imported and runs what it built.
"""

import time
from collections import Counter
from dataclasses import asdict
from importlib import import_module
from typing import Any

import onnx
import torch

from unified_embedding.engine.tensorrt import builder as trt_builder
from unified_embedding.engine.tensorrt.torch_graph import OnnxModule
from unified_embedding.errors import BuildError, TrtError
from unified_embedding.spec import FEATURES, INPUT, OUTPUT


def export(model: onnx.ModelProto, largest_batch: int) -> torch.export.ExportedProgram:
    """Trace the graph for batches from 1 to `largest_batch`."""
    tensor = model.graph.input[0].type.tensor_type
    side = [dimension.dim_value for dimension in tensor.shape.dim][1:]
    example = torch.zeros(2, *side, dtype=torch.uint8)
    batch = torch.export.Dim("N", min=1, max=largest_batch)
    with torch.no_grad():
        return torch.export.export(
            OnnxModule(model).eval(), (example,), dynamic_shapes=({0: batch},)
        )


def convolution_types(program: torch.export.ExportedProgram) -> Counter[torch.dtype]:
    """How many convolutions of the program compute in which type.

    Torch-TensorRT types its network as the program is typed (its releases from 2.13 on).
    """
    return Counter(
        node.meta["val"].dtype
        for node in program.graph.nodes
        if node.op == "call_function" and "conv" in str(node.target)
    )


def compile_plan(
    model: onnx.ModelProto, options: trt_builder.Options
) -> tuple[bytes, dict[str, Any]]:
    """Build a plan from the FP16 graph `model`; returns it with what engine.json records.

    Raises:
        BuildError: Torch-TensorRT is not installed or does not start here.
        TrtError: a convolution is not FP16.
    """
    program = export(model, options.profile.maximum)
    types = convolution_types(program)
    half = types[torch.float16]
    if half != types.total() or not half:
        raise TrtError(f"{half} of {types.total()} convolutions of the exported program are FP16")
    torch_tensorrt = _torch_tensorrt()
    side = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)[1:]
    batches = options.profile
    started = time.monotonic()
    plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
        program,
        arg_inputs=[
            torch_tensorrt.Input(
                min_shape=(batches.minimum, *side),
                opt_shape=(batches.optimum, *side),
                max_shape=(batches.maximum, *side),
                dtype=torch.uint8,
            )
        ],
        arg_input_binding_names=(INPUT,),
        output_binding_names=(OUTPUT, FEATURES),
        require_full_compilation=True,
        min_block_size=1,
        optimization_level=options.optimization_level,
        version_compatible=options.version_compatible,
    )
    return bytes(plan), {
        "torch_tensorrt": str(torch_tensorrt.__version__),
        "profile": asdict(batches),
        "optimization_level": options.optimization_level,
        "version_compatible": options.version_compatible,
        "convolutions_fp16": f"{half} of {types.total()}",
        "build_seconds": round(time.monotonic() - started, 1),
    }


def _torch_tensorrt() -> Any:
    try:
        return import_module("torch_tensorrt")
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        raise BuildError(
            f"FRONTEND=torch-tensorrt does not start here ({error}); it needs a GPU and "
            "pip install 'unified-embedding[torch-tensorrt]'; FRONTEND=onnx needs neither"
        ) from error
