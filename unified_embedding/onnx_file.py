"""The hand-over file: `embedder.onnx`, checked against its `spec.json` on the way out and in.

Needs `onnx` only (extra `build`), so that the build step reads models without torch.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import onnx

from unified_embedding.errors import SpecError, shown
from unified_embedding.paths import StrPath
from unified_embedding.spec import (
    FEATURES,
    INPUT,
    INT8_FILE,
    ONNX_FILE,
    OUTPUT,
    VERSION_KEY,
    EmbedderSpec,
)
from unified_embedding.whole_files import whole_file

_FLOAT: Final = int(onnx.TensorProto.FLOAT)
_UINT8: Final = int(onnx.TensorProto.UINT8)


def graph_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 in hex of the graph with its constants; metadata and producer do not enter."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def save(model: onnx.ModelProto, spec: EmbedderSpec, folder: StrPath) -> None:
    """Write `folder/embedder.onnx`, stamped with the version, and `folder/spec.json`.

    The same model and spec give the same bytes.

    Raises:
        SpecError: the graph is not the one the spec describes.
    """
    _check(model, spec, "the model to be saved")
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    del stamped.metadata_props[:]
    onnx.helper.set_model_props(stamped, {VERSION_KEY: spec.version})
    Path(folder, ONNX_FILE).write_bytes(stamped.SerializeToString(deterministic=True))
    spec.save(folder)


def load(folder: StrPath) -> tuple[onnx.ModelProto, EmbedderSpec]:
    """Read an embedder folder and verify that weights and description belong together.

    Raises:
        SpecError: a file is missing or unreadable, the graph's hash or its stamped version is
            not the spec's, or inputs and outputs are not those of an embedder.
    """
    spec = EmbedderSpec.load(folder)
    path = Path(folder, ONNX_FILE)
    try:
        model = onnx.load(str(path))
    except FileNotFoundError:
        raise SpecError(
            f"{path} does not exist; python -m unified_embedding.export writes it"
        ) from None
    except Exception as error:  # protobuf's DecodeError has no public home in every version.
        raise SpecError(f"{path} is not a readable ONNX file ({error})") from error
    _check(model, spec, str(path))
    stamped = {entry.key: entry.value for entry in model.metadata_props}.get(VERSION_KEY)
    if stamped != spec.version:
        raise SpecError(
            f"{path} carries version {stamped} but its spec.json has {spec.version}; "
            "export the model again"
        )
    return model, spec


def save_quantised(model: onnx.ModelProto, spec: EmbedderSpec, folder: StrPath) -> Path:
    """Write `folder/embedder.int8.onnx`, stamped with the embedder's version; returns its path.

    Raises:
        SpecError: inputs or outputs are not those of the embedder.
    """
    path = Path(folder, INT8_FILE)
    _check_sides(model, spec, "the quantised model to be saved")
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    onnx.helper.set_model_props(stamped, {VERSION_KEY: spec.version})
    with whole_file(path) as partial:
        partial.write_bytes(stamped.SerializeToString(deterministic=True))
    return path


def load_quantised(folder: StrPath, spec: EmbedderSpec) -> onnx.ModelProto:
    """Read `folder/embedder.int8.onnx`, made of the embedder that `spec` describes.

    Raises:
        SpecError: the file is missing or unreadable, or it was made of another version.
    """
    path = Path(folder, INT8_FILE)
    again = f"make quantise MODEL={folder} writes it anew, or remove it"
    try:
        model = onnx.load(str(path))
    except Exception as error:  # As above.
        raise SpecError(f"{path} is not a readable ONNX file ({error}); {again}") from error
    made_of = {entry.key: entry.value for entry in model.metadata_props}.get(VERSION_KEY)
    if made_of != spec.version:
        raise SpecError(
            f"{path} was made of version {shown(made_of)}, and the embedder beside it is "
            f"{spec.version}; {again}"
        )
    _check_sides(model, spec, str(path))
    return model


def _check(model: onnx.ModelProto, spec: EmbedderSpec, source: str) -> None:
    found = graph_sha256(model)
    if found != spec.graph_sha256:
        raise SpecError(
            f"{source} has graph {found[:12]} but its spec describes {spec.graph_sha256[:12]}; "
            "the file was changed or belongs to another export: export the model again"
        )
    _check_sides(model, spec, source)


def _check_sides(model: onnx.ModelProto, spec: EmbedderSpec, source: str) -> None:
    side = spec.preprocessing.size
    _check_tensors(model.graph.input, {INPUT: (_UINT8, [side, side, 3])}, "input", source)
    outputs = {OUTPUT: (_FLOAT, [spec.dim]), FEATURES: (_FLOAT, [spec.dim])}
    _check_tensors(model.graph.output, outputs, "output", source)


def _check_tensors(
    found: Iterable[onnx.ValueInfoProto],
    wanted: dict[str, tuple[int, list[int]]],
    kind: str,
    source: str,
) -> None:
    values = list(found)
    names = [value.name for value in values]
    if names != list(wanted):
        raise SpecError(f"{source} has {kind}s {names}; an embedder has {list(wanted)}")
    for value in values:
        tensor = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
        dtype, sides = wanted[value.name]
        batch_is_free = bool(shape) and isinstance(shape[0], str)
        if tensor.elem_type != dtype or shape[1:] != sides or not batch_is_free:
            raise SpecError(
                f"{source}: {kind} {value.name!r} is "
                f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} {shape}, expected "
                f"{onnx.TensorProto.DataType.Name(dtype)} with any batch and sides {sides}"
            )
