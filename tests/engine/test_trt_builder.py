"""The builder on TensorRT-RTX, which parses and compiles without a GPU."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt-rtx` is not installed")
pytest.importorskip("onnx", reason="the extra `build` is not installed")

import onnx
import tensorrt_rtx as trt
import tiny_embedder as tiny
from onnx import TensorProto, helper
from rich.console import Console

from unified_embedding.engine.tensorrt import builder as trt_builder
from unified_embedding.engine.tensorrt import fp16_graph
from unified_embedding.engine.tensorrt import observers as trt_observers
from unified_embedding.engine.tensorrt import plan as tensorrt_plan
from unified_embedding.engine.tensorrt.builder import Options, Profile
from unified_embedding.errors import TrtError

OPTIONS = Options(profile=Profile(1, 4, 8), optimization_level=3)


def half_model():
    return fp16_graph.convert(tiny.tiny_embedder()).model


def with_fp32_convolution():
    """The FP16 graph, with the convolution "expand" back in fp32 between two casts."""
    model = half_model()
    index, planted = next(
        (index, item) for index, item in enumerate(model.graph.node) if item.name == "expand"
    )
    up = tiny.node("Cast", planted.input[0], "up", to=TensorProto.FLOAT)
    down = tiny.node("Cast", "wide", planted.output[0], to=TensorProto.FLOAT16)
    for name in list(planted.input)[1:]:
        tiny.set_constant(model, name, tiny.constant(model, name).astype(np.float32))
    planted.input[0], planted.output[0] = "up", "wide"
    down.name = "down"
    model.graph.node.insert(index + 1, down)
    model.graph.node.insert(index, up)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_types_are_read_from_the_parsed_network() -> None:
    network = trt_builder.parse(trt, half_model().SerializeToString())
    types = trt_builder.read_types(trt, network)
    assert str(types) == "5 of 5 convolutions FP16, 1 of 1 normalisations FP32"
    assert types.problems == ()
    assert types.by_kind["CONVOLUTION"] == {"HALF -> HALF": 5}
    assert types.by_kind["NORMALIZATION"] == {"FLOAT -> FLOAT": 1}
    assert types.by_kind["REDUCE"] == {"HALF -> HALF": 1, "FLOAT -> FLOAT": 1}
    assert types.by_kind["CAST"] == {
        "UINT8 -> FLOAT": 1, "FLOAT -> HALF": 1, "HALF -> FLOAT": 1,
    }  # fmt: skip
    assert sum(sum(counts.values()) for counts in types.by_kind.values()) == len(network.layers)


def test_the_fp32_graph_is_not_taken_for_fp16() -> None:
    network = trt_builder.parse(trt, tiny.tiny_embedder().SerializeToString())
    types = trt_builder.read_types(trt, network)
    assert (types.half_convolutions, types.convolutions) == (0, 5)
    with pytest.raises(TrtError, match=r"convolution 'stem' is FLOAT -> FLOAT, expected HALF"):
        tensorrt_plan.check_types(types)


def test_one_planted_fp32_convolution_is_named_and_nothing_is_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    graph = with_fp32_convolution().SerializeToString()
    with pytest.raises(TrtError, match=r"convolution 'expand' is FLOAT -> FLOAT") as caught:
        tensorrt_plan.compile_plan(trt, graph, OPTIONS)
    assert "'stem'" not in str(caught.value)
    printed = capsys.readouterr().out
    assert "4 of 5 convolutions FP16" in printed
    assert "built" not in printed


def test_a_half_norm_and_a_half_output_are_problems() -> None:
    model = half_model()
    for name in ("global_pool", "embedding", "features"):
        item = tiny.named(model, name)
        item.input[0] = item.input[0].removesuffix(".float")
    tiny.set_constant(model, "scale", np.ones(tiny.DIM, np.float16))
    for output in model.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT16
    network = trt_builder.parse(trt, model.SerializeToString())
    norm, border = trt_builder.read_types(trt, network).problems
    assert norm.startswith("normalization 'embedding' is HALF -> HALF")
    assert "'embedding': 'HALF'" in border


def test_an_unsupported_operation_is_named() -> None:
    model = tiny.tiny_embedder()
    planted = tiny.named(model, "relu6")
    planted.op_type = "Bernoulli"
    del planted.input[1:]
    graph = fp16_graph.convert(model).model.SerializeToString()
    with pytest.raises(TrtError, match=r"node 'relu6' \(Bernoulli\), unsupported node"):
        trt_builder.parse(trt, graph)


def test_a_permute_before_the_cast_is_named_by_the_parser_too() -> None:
    graph = tiny.permute_before_cast().SerializeToString()
    with pytest.raises(TrtError, match=r"node 'early_permute' \(Transpose\).*UInt8"):
        trt_builder.parse(trt, graph)


def test_a_plan_is_built_and_its_progress_shown() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    network = trt_builder.parse(trt, half_model().SerializeToString())
    plan, seconds = trt_builder.build(trt, network, OPTIONS, console)
    assert len(plan) > 1000
    assert seconds > 0
    assert "Building engine" in screen.getvalue()


def test_capabilities_decide_the_plan_and_unknown_ones_are_refused() -> None:
    def build(*capabilities: str) -> bytes:
        network = trt_builder.parse(trt, half_model().SerializeToString())
        options = replace(OPTIONS, compute_capabilities=capabilities)
        return trt_builder.build(trt, network, options, Console(quiet=True))[0]

    assert build("8.6") != build("8.9")
    with pytest.raises(TrtError, match=r"9.0 is unknown to TensorRT-RTX; it has 7.5, 8.0, 8.6"):
        build("9.0")


# In a process of its own: a SIGINT that the builder did not catch would end the tests.
INTERRUPTED = """
import io, os, signal, sys
import tensorrt_rtx, tiny_embedder
from unified_embedding.engine.tensorrt import builder as trt_builder
from unified_embedding.engine.tensorrt import fp16_graph
from rich.console import Console
from rich.progress import Progress

graph = fp16_graph.convert(tiny_embedder.tiny_embedder()).model.SerializeToString()
network = trt_builder.parse(tensorrt_rtx, graph)
options = trt_builder.Options(trt_builder.Profile(1, 4, 8), 3)
before, add_task = signal.getsignal(signal.SIGINT), Progress.add_task

def interrupted(bars, *arguments, **keywords):
    os.kill(os.getpid(), signal.SIGINT)
    return add_task(bars, *arguments, **keywords)

Progress.add_task = interrupted
try:
    trt_builder.build(tensorrt_rtx, network, options, Console(file=io.StringIO()))
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGINT) is before)
"""


def test_sigint_ends_a_build_and_leaves_the_handler_as_it_was(root: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root / "tests")},
    )
    assert (run.returncode, run.stdout) == (0, "interrupted True\n"), run.stderr


def test_the_log_goes_to_ours_level_by_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", logger="tensorrt.parser")  # `make engine` silences it.
    log = trt_observers.log(trt)
    assert trt_observers.log(trt) is log
    log.log(trt.ILogger.WARNING, "a kernel is slow")
    with trt_observers.parsing(log):
        log.log(trt.ILogger.ERROR, "a node is bad")
    log.log(trt.ILogger.INTERNAL_ERROR, "it broke")
    assert [(r.name, r.levelname, r.message) for r in caplog.records] == [
        ("tensorrt.build", "WARNING", "a kernel is slow"),
        ("tensorrt.parser", "ERROR", "a node is bad"),
        ("tensorrt.build", "CRITICAL", "it broke"),
    ]


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 2), (1, 4, 2)])
def test_a_profile_that_does_not_rise_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="minimum <= optimum <= maximum"):
        Profile(*sizes)


def test_a_graph_whose_norm_is_helped_out_in_pieces_still_counts_convolutions() -> None:
    """Without a LayerNormalization node there is none to assert, and the count says so."""
    model = half_model()
    norm = tiny.named(model, "embedding")
    source = norm.input[0]
    norm.CopyFrom(helper.make_node("Identity", [source], ["embedding"], name="embedding"))
    network = trt_builder.parse(trt, model.SerializeToString())
    types = trt_builder.read_types(trt, network)
    assert str(types) == "5 of 5 convolutions FP16, 0 of 0 normalisations FP32"
