"""One builder for TensorRT (10.12 and later, 11) and TensorRT-RTX: the module is passed in.

Both take a strongly typed network: TensorRT 11 and RTX know no other, and 10.12 accepts the
flag. Types therefore come from the ONNX graph, and are read back from the parsed network here,
because a build that fell back to FP32 would otherwise pass unnoticed.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from unified_embedding.engine.tensorrt import observers as trt_observers
from unified_embedding.errors import TrtError
from unified_embedding.spec import FEATURES, INPUT, OUTPUT
from unified_embedding.whole_files import whole_file


@dataclass(frozen=True)
class Profile:
    """The batch sizes of the one optimisation profile: any size in between runs."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ValueError(
                f"profile {self.minimum}/{self.optimum}/{self.maximum}: batch sizes must rise "
                "from at least 1: minimum <= optimum <= maximum"
            )


@dataclass(frozen=True)
class Options:
    """How to build.

    Attributes:
        profile: the batch sizes.
        optimization_level: 0 to 5; 4 and 5 search longer for faster kernels.
        timing_cache: file that keeps kernel timings between builds. One file serves one GPU,
            driver and TensorRT version; the caller names it accordingly.
        version_compatible: the plan also loads in later TensorRT versions, maybe slower.
        compute_capabilities: RTX only, for instance ("8.6", "8.9"); empty leaves the choice to it.
    """

    profile: Profile
    optimization_level: int
    timing_cache: Path | None = None
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkTypes:
    """Types of the parsed network.

    Attributes:
        by_kind: how many layers of each kind have which input and output types,
            for instance {"CONVOLUTION": {"HALF -> HALF": 49}}.
        convolutions, half_convolutions: all, and those with nothing but FP16 tensors.
        norms, float_norms: normalisation layers, and those with nothing but FP32 tensors.
        problems: a sentence for each layer or border tensor of the wrong type.
    """

    by_kind: Mapping[str, Mapping[str, int]]
    convolutions: int
    half_convolutions: int
    norms: int
    float_norms: int
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.half_convolutions} of {self.convolutions} convolutions FP16, "
            f"{self.float_norms} of {self.norms} normalisations FP32"
        )


@dataclass
class Network:
    """A parsed network with what must outlive it: the parser owns the weights."""

    builder: Any
    parser: Any
    definition: Any
    log: Any
    layers: list[Any] = field(default_factory=list)


def parse(trt: Any, onnx: bytes) -> Network:
    """Parse a serialised ONNX model into a strongly typed network.

    Raises:
        TrtError: the parser refused; one line for each error, with node and operation.
    """
    log = trt_observers.log(trt)
    builder = trt.Builder(log)
    # Needed by TensorRT 10; "always on" in 11 and in RTX, which keep the flag for this call.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    parser = trt.OnnxParser(definition, log)
    with trt_observers.parsing(log):
        parsed = parser.parse(onnx)
    if not parsed:
        errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise TrtError("\n".join(["TensorRT cannot parse the graph:", *errors]))
    layers = [definition.get_layer(index) for index in range(definition.num_layers)]
    return Network(builder, parser, definition, log, layers)


def read_types(trt: Any, network: Network) -> NetworkTypes:
    """Read every layer's tensor types from the parsed network."""
    kinds: dict[str, Counter[str]] = {}
    problems = []
    for layer in network.layers:
        kinds.setdefault(layer.type.name, Counter())[_signature(layer)] += 1
    wanted = {trt.LayerType.CONVOLUTION: trt.float16, trt.LayerType.NORMALIZATION: trt.float32}
    total: Counter[Any] = Counter()
    right: Counter[Any] = Counter()
    for layer in network.layers:
        if layer.type not in wanted:
            continue
        total[layer.type] += 1
        if {tensor.dtype for tensor in _tensors(layer)} == {wanted[layer.type]}:
            right[layer.type] += 1
        else:
            problems.append(
                f"{layer.type.name.lower()} {layer.name!r} is {_signature(layer)}, "
                f"expected {wanted[layer.type].name} throughout"
            )
    return NetworkTypes(
        by_kind={kind: dict(counts) for kind, counts in sorted(kinds.items())},
        convolutions=total[trt.LayerType.CONVOLUTION],
        half_convolutions=right[trt.LayerType.CONVOLUTION],
        norms=total[trt.LayerType.NORMALIZATION],
        float_norms=right[trt.LayerType.NORMALIZATION],
        problems=(*problems, *_border_problems(trt, network.definition)),
    )


def build(trt: Any, network: Network, options: Options, console: Console) -> tuple[bytes, float]:
    """Build the plan; returns it with the seconds it took. Progress is shown on `console`.

    Raises:
        TrtError: TensorRT gave no plan; its own messages are in the log.
        KeyboardInterrupt: SIGINT arrived; TensorRT stopped at its next step.
    """
    config = _config(trt, network, options)
    started = time.monotonic()
    with trt_observers.Progress(trt, console) as progress:
        config.progress_monitor = progress.monitor
        plan = network.builder.build_serialized_network(network.definition, config)
        if progress.interrupted:
            raise KeyboardInterrupt
    if plan is None:
        raise TrtError("TensorRT built no plan; the log lines above name the layer")
    _save_timing_cache(config, options.timing_cache)
    return bytes(plan), time.monotonic() - started


def _config(trt: Any, network: Network, options: Options) -> Any:
    config = network.builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    _set_compute_capabilities(trt, config, options.compute_capabilities)
    profile = network.builder.create_optimization_profile()
    side = tuple(network.definition.get_input(0).shape)[1:]
    batches = options.profile
    profile.set_shape(
        INPUT, (batches.minimum, *side), (batches.optimum, *side), (batches.maximum, *side)
    )
    if config.add_optimization_profile(profile) < 0:
        raise TrtError(f"TensorRT refused the optimisation profile {batches} for {side}")
    if options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache)
    return config


def _load_timing_cache(config: Any, path: Path) -> None:
    known = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        # Another driver or a damaged file: start over, which costs time and nothing else.
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _set_compute_capabilities(trt: Any, config: Any, names: Sequence[str]) -> None:
    if not names:
        return
    if not hasattr(trt, "ComputeCapability"):
        raise TrtError("compute capabilities can be chosen for tensorrt-rtx only")
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        member = f"SM{name.replace('.', '')}"
        if member not in known:
            have = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM"))
            raise TrtError(f"compute capability {name} is unknown to TensorRT-RTX; it has {have}")
        config.set_compute_capability(known[member], index)


def _save_timing_cache(config: Any, path: Path | None) -> None:
    cache = config.get_timing_cache() if path is not None else None
    if path is None or cache is None:
        return
    with whole_file(path) as partial:
        partial.write_bytes(bytes(cache.serialize()))


def _parser_error(error: Any) -> str:
    # Further lines repeat the first ones, or report that no CUDA driver is there.
    said = "; ".join(line for line in error.desc().splitlines()[:2] if line)
    code = error.code().name.lower().replace("_", " ")
    return f"  node {error.node_name()!r} ({error.node_operator()}), {code}: {said}"


def _tensors(layer: Any) -> Iterator[Any]:
    yield from filter(None, (layer.get_input(i) for i in range(layer.num_inputs)))
    yield from (layer.get_output(i) for i in range(layer.num_outputs))


def _signature(layer: Any) -> str:
    def names(tensors: list[Any]) -> str:
        return "+".join(sorted({tensor.dtype.name for tensor in tensors if tensor is not None}))

    inputs = names([layer.get_input(i) for i in range(layer.num_inputs)])
    outputs = names([layer.get_output(i) for i in range(layer.num_outputs)])
    return f"{inputs} -> {outputs}" if inputs else outputs


def _border_problems(trt: Any, definition: Any) -> Iterator[str]:
    inputs = [definition.get_input(i) for i in range(definition.num_inputs)]
    outputs = [definition.get_output(i) for i in range(definition.num_outputs)]
    found = {tensor.name: tensor.dtype.name for tensor in [*inputs, *outputs]}
    wanted = {INPUT: trt.uint8.name, OUTPUT: trt.float32.name, FEATURES: trt.float32.name}
    if found != wanted:
        yield f"the network's inputs and outputs are {found}, expected {wanted}"
