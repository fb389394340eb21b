"""Both server profiles come from one description; read with Triton's own protobuf."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf.text_format")
pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="the extra `client` is not installed"
)

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as model_config

from unified_embedding.engine import triton_config
from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.names import Names
from unified_embedding.serving import model_config as files
from unified_embedding.serving.repository import fit, fit_binarizer
from unified_embedding.spec import MAX_BATCH_SIZE, EmbedderSpec

CPU = EmbedderConfig(backend="python", kind="KIND_CPU", parameters={"threads": "2"})
GPU = EmbedderConfig(backend="tensorrt", kind="KIND_GPU", instances=2, warm_up=True)


@pytest.fixture
def spec(root: Path) -> EmbedderSpec:
    return EmbedderSpec.load(root / "models/unified-embedder-lite0")


def parsed(config: EmbedderConfig, spec: EmbedderSpec):
    """What Triton reads of what is written."""
    rendered = triton_config.render(config, spec, "tensorrt-fp16-0123456789ab")
    return text_format.Parse(files.text(rendered), model_config.ModelConfig())


def test_the_gpu_profile_field_by_field(spec: EmbedderSpec) -> None:
    config = parsed(GPU, spec)
    assert (config.backend, config.platform, config.max_batch_size) == ("tensorrt", "", 16)
    (pixels,) = config.input
    assert (pixels.name, pixels.data_type) == ("pixels", model_config.TYPE_UINT8)
    assert list(pixels.dims) == [224, 224, 3]
    assert [(item.name, item.data_type, list(item.dims)) for item in config.output] == [
        ("embedding", model_config.TYPE_FP32, [1280]),
        ("features", model_config.TYPE_FP32, [1280]),
    ]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config.ModelInstanceGroup.KIND_GPU)
    assert config.optimization.input_pinned_memory.enable
    assert config.optimization.output_pinned_memory.enable
    assert not config.optimization.HasField("cuda")
    assert config.parameters["unified_embedding.version"].string_value == spec.version
    engine = config.parameters["unified_embedding.engine"].string_value
    assert engine == "tensorrt-fp16-0123456789ab"


def test_every_batch_size_is_warmed_up_with_the_input_it_takes(spec: EmbedderSpec) -> None:
    warm_up = parsed(GPU, spec).model_warmup
    assert [item.batch_size for item in warm_up] == list(range(1, MAX_BATCH_SIZE + 1))
    assert len({item.name for item in warm_up}) == MAX_BATCH_SIZE
    for item in warm_up:
        value = item.inputs["pixels"]
        assert (value.data_type, list(value.dims)) == (model_config.TYPE_UINT8, [224, 224, 3])
        assert value.zero_data


def test_clients_see_which_versions_the_queries_may_search(spec: EmbedderSpec) -> None:
    key = "unified_embedding.compatible_with"
    assert key not in parsed(CPU, spec).parameters
    declared = replace(spec, compatible_with=("0123456789ab", "abcabcabcabc"))
    assert parsed(CPU, declared).parameters[key].string_value == "0123456789ab abcabcabcabc"


def test_cuda_graphs_are_recorded_for_every_batch_size_and_only_on_request(
    spec: EmbedderSpec,
) -> None:
    graphs = EmbedderConfig(backend="tensorrt", kind="KIND_GPU", cuda_graphs=True)
    cuda = parsed(graphs, spec).optimization.cuda
    assert cuda.graphs
    assert [item.batch_size for item in cuda.graph_spec] == list(range(1, MAX_BATCH_SIZE + 1))
    # An inexact match would run over rows that nobody filled.
    assert not any(item.HasField("graph_lower_bound") for item in cuda.graph_spec)


@pytest.mark.parametrize("config", [CPU, GPU], ids=["cpu", "gpu"])
def test_batching_without_a_queue_policy(config: EmbedderConfig, spec: EmbedderSpec) -> None:
    """Any queue policy stalls a request by half a second with fewer than four instances."""
    assert parsed(config, spec).HasField("dynamic_batching")
    assert parsed(config, spec).dynamic_batching == model_config.ModelDynamicBatching()


def test_both_profiles_offer_the_same_tensors(spec: EmbedderSpec) -> None:
    cpu, gpu = parsed(CPU, spec), parsed(GPU, spec)
    assert list(cpu.input) == list(gpu.input)
    assert list(cpu.output) == list(gpu.output)
    assert cpu.max_batch_size == gpu.max_batch_size
    assert cpu.parameters["threads"].string_value == "2"


def model(path: Path):
    return text_format.Parse(path.read_text(), model_config.ModelConfig())


def test_no_python_model_takes_a_free_dimension_but_the_number_of_pictures(
    root: Path, spec: EmbedderSpec
) -> None:
    """One of 2^62 ends the process of a Python model before `execute` (Triton 2.51)."""
    for config in (parsed(CPU, spec), model(root / "model_repository/binarizer/config.pbtxt")):
        assert config.max_batch_size == MAX_BATCH_SIZE
        assert all(side > 0 for tensor in config.input for side in tensor.dims)
    preprocess = model(root / "model_repository/preprocess/config.pbtxt")
    # BYTES are counted before they are handed on, whatever the shape says.
    assert [(item.data_type, list(item.dims)) for item in preprocess.input] == [
        (model_config.TYPE_STRING, [-1, 1])
    ]


def test_preprocess_joins_no_requests(root: Path) -> None:
    """A false BYTES length fails the whole batch."""
    preprocess = model(root / "model_repository/preprocess/config.pbtxt")
    assert not preprocess.HasField("dynamic_batching")
    assert preprocess.max_batch_size == 0


@pytest.mark.parametrize("linked", [False, True])
def test_the_binarizer_takes_the_width_of_the_installed_embedder(
    root: Path, tmp_path: Path, linked: bool
) -> None:
    shared, repository = tmp_path / "shared", tmp_path / "model_repository"
    shutil.copytree(root / "model_repository/binarizer", shared / "binarizer")
    before = (shared / "binarizer/config.pbtxt").read_text()
    assert before.startswith("# ")
    if linked:
        repository.mkdir()
        (repository / "binarizer").symlink_to(shared / "binarizer")
    else:
        shutil.copytree(shared / "binarizer", repository / "binarizer")
    config = repository / "binarizer/config.pbtxt"
    fit_binarizer(repository / "binarizer", 1280)
    assert config.read_text() == before
    assert (repository / "binarizer").is_symlink() == linked
    for width in (2048, 64):
        fit_binarizer(repository / "binarizer", width)
        assert [list(tensor.dims) for tensor in model(config).input] == [[width]]
    assert (repository / "binarizer/1/model.py").is_file()
    # Another repository's stays as it is.
    assert (shared / "binarizer/config.pbtxt").read_text() == before
    # Back to the checkout's width, it is the checkout's file again, byte for byte.
    fit_binarizer(repository / "binarizer", 1280)
    assert config.read_text() == before
    config.write_text("nonsense")
    with pytest.raises(ValueError, match=r"binarizer/config.pbtxt is no model configuration: 1:"):
        fit_binarizer(repository / "binarizer", 64)
    config.write_text('backend: "python"')
    with pytest.raises(ValueError, match="does not take `features` alone"):
        fit_binarizer(repository / "binarizer", 64)
    fit_binarizer(tmp_path / "none", 64)  # No binarizer: nothing to do.


def test_further_models_are_laid_out_under_their_prefix(root: Path, tmp_path: Path) -> None:
    names, source = Names("v2-"), root / "model_repository"
    fit(tmp_path, 16, names)
    assert {path.name for path in tmp_path.iterdir()} == set(names.models) - {names.embedder}
    ensemble = files.read(tmp_path / names.ensemble)
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == list(names.models[:3])
    # Tensors have no prefix: the wire contract is the same.
    for step in steps:
        step.model_name = step.model_name.removeprefix("v2-")
    assert ensemble == files.read(source / "unified_embedding")
    assert files.read(tmp_path / names.preprocess) == files.read(source / "preprocess")
    assert list(files.read(tmp_path / names.binarizer).input[0].dims) == [16]
    for model in (names.preprocess, names.binarizer):
        code = source / model.removeprefix("v2-") / "1/model.py"
        assert (tmp_path / model / "1/model.py").read_bytes() == code.read_bytes()
    assert (tmp_path / names.ensemble / "1").is_dir()


def test_the_ensemble_takes_what_every_engine_takes(root: Path) -> None:
    ensemble = model(root / "model_repository/unified_embedding/config.pbtxt")
    assert ensemble.max_batch_size == MAX_BATCH_SIZE
