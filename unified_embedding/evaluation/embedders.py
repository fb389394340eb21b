"""Whatever turns pictures into embeddings, behind one small interface.

| source | what runs |
|---|---|
| trunk:NAME@SIZE | an untrained-on-our-data timm trunk with LayerNorm, on onnxruntime |
| RUN/last.pt | a training run's embedder, exported as it would be served, on onnxruntime |
| FOLDER with embedder.onnx | a released embedder, on onnxruntime |
| FOLDER with config.pbtxt | the engine that `make engine` installed, on OpenVINO |
| server:HOST:PORT | the running tritonserver, through the client |
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from unified_embedding.errors import DataError, ServerError
from unified_embedding.image import Preprocessing, load_pixels
from unified_embedding.onnx_runner import Runner, on_onnxruntime
from unified_embedding.spec import (
    MAX_BATCH_SIZE,
    ONNX_FILE,
    RANDOM_WEIGHTS,
    EmbedderSpec,
    digest,
)

BATCH: Final = 16
SERVER: Final = "server:"
TRUNK: Final = "trunk:"
_PATIENCE: Final = 600.0
"""Seconds that a server may take for the pictures of one call."""
_HINTS: Final = {"bf16": "bf16", "fp32": "f32"}


class Embedder(Protocol):
    """Encoded pictures in, embeddings float32 [N, D] out.

    Attributes:
        id: names weights, preprocessing and runtime; equal ids give equal vectors. None for a
            server, which is asked anew each time.
        facts: what is known about it, for the page: input side in pixels, training steps ...
    """

    id: str | None
    facts: dict[str, Any]

    def embed(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Embeddings of any number of pictures. Raises ImageError for a bad one."""


@dataclass
class LocalEmbedder:
    """An embedder of this process; the network is loaded when the first picture comes.

    Attributes:
        id: see `Embedder`.
        preprocessing: how pictures become pixels.
        load: returns the function pixels uint8 [N, S, S, 3] -> embedding [N, D].
        facts: see `Embedder`.
    """

    id: str | None
    preprocessing: Preprocessing
    load: Callable[[], Runner]
    facts: dict[str, Any] = field(default_factory=dict)
    _run: Runner | None = None

    def __post_init__(self) -> None:
        self.facts = {"size": self.preprocessing.size, **self.facts}

    def embed(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """See `Embedder`."""
        if self._run is None:
            self._run = self.load()
        parts = [
            self._run(
                np.stack([load_pixels(i, self.preprocessing) for i in images[at : at + BATCH]])
            )
            for at in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)


class ServedEmbedder:
    """The running server, through the public client."""

    id: str | None = None

    def __init__(self, url: str) -> None:
        """Connect to HOST:PORT of gRPC. Raises ClientError when nothing answers."""
        from unified_embedding.client import Connection, EmbedderClient

        self._client = EmbedderClient(url, **Connection.from_environment().options())
        info = self._client.info()
        self.facts: dict[str, Any] = {
            "size": info.input_size,
            "version": info.version,
            "engine": info.engine,
        }

    def embed(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """Embeddings from the server, whose codes are checked to be their signs.

        Raises:
            ServerError: the codes are not.
            ClientError: see `EmbedderClient.embed`.
        """
        answer = self._client.embed(images, timeout=_PATIENCE)
        assert answer.embedding is not None  # both outputs are asked for by default
        assert answer.code is not None
        if not np.array_equal(answer.code, np.packbits(answer.embedding > 0, axis=1)):
            raise ServerError("the server's codes are not the signs of its embeddings")
        return answer.embedding

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def is_there(source: str) -> bool:
    """Whether a source can be opened at all; a row without its file is "not run"."""
    return source.startswith((SERVER, TRUNK)) or Path(source).exists()


def open_embedder(source: str, threads: int = 0, layer_norm: bool = True) -> Embedder:
    """Open one of the sources above.

    Args:
        source: see the table of this module.
        threads: of the runtime; 0 leaves the choice to it.
        layer_norm: False yields the pooled features in front of LayerNorm; of a trunk or a
            checkpoint only.

    Raises:
        DataError: the source is none of these, or not there.
        SpecError, TrainingError, ClientError: it cannot be opened; the message says why.
    """
    path = Path(source)
    if source.startswith(TRUNK):
        return _trunk(source.removeprefix(TRUNK), threads, layer_norm)
    if path.suffix == ".pt":
        return _checkpoint(path, threads, layer_norm)
    if not layer_norm:
        raise DataError(f"{source}: features in front of LayerNorm need a trunk or a checkpoint")
    if source.startswith(SERVER):
        return ServedEmbedder(source.removeprefix(SERVER))
    if (path / ONNX_FILE).exists():
        return _released(path, threads)
    if (path / "config.pbtxt").exists():
        return _engine(path, threads)
    raise DataError(
        f"{source} is not an embedder: give trunk:NAME@SIZE, a checkpoint (.pt), a folder with "
        f"{ONNX_FILE}, a folder with an installed engine, or server:HOST:PORT"
    )


def resized(embedder: Embedder, resize: Preprocessing) -> Embedder:
    """The same network on pictures that are resized in another way, at its own size.

    Raises:
        DataError: a server resizes by itself.
    """
    if not isinstance(embedder, LocalEmbedder):
        raise DataError("a server resizes pictures by itself; measure it with --resize own")
    changed = replace(resize, size=embedder.preprocessing.size)
    return LocalEmbedder(
        digest([embedder.id, asdict(changed)]), changed, embedder.load, dict(embedder.facts)
    )


def _trunk(name: str, threads: int, layer_norm: bool) -> LocalEmbedder:
    from unified_embedding.export.export import zero_shot

    trunk, _, size = name.partition("@")
    if size and not size.isdigit():
        raise DataError(f"trunk:{name}: the part behind @ is the input side in pixels")
    exportable = zero_shot(trunk, size=int(size or 224))
    if exportable.weights == RANDOM_WEIGHTS:
        raise DataError(f"trunk:{name}: no pretrained weights are at hand, figures mean nothing")
    preprocessing = Preprocessing(size=int(size or 224))
    return _torch(exportable.model, preprocessing, threads, layer_norm, {"trained": False})


def _checkpoint(path: Path, threads: int, layer_norm: bool) -> LocalEmbedder:
    from unified_embedding.training.checkpoint import images_seen, load_embedder

    model, recipe, summary = load_embedder(path)
    facts: dict[str, Any] = {
        "trained": True,
        "steps": summary["steps"],
        "tasks": summary["tasks"],
        "layer_norm": recipe.layer_norm,
    }
    if (images := images_seen(summary)) is not None:
        earlier = sum(run.get("images", 0) for run in summary.get("earlier", []))
        facts["images_seen"] = images + earlier
    return _torch(model, recipe.preprocessing, threads, layer_norm and recipe.layer_norm, facts)


def _torch(
    model: Any, preprocessing: Preprocessing, threads: int, layer_norm: bool, facts: dict[str, Any]
) -> LocalEmbedder:
    """A torch embedder as the graph that would be served, traced when it is needed."""
    import onnxruntime
    from torch import nn

    from unified_embedding.export.graph import to_onnx

    if not layer_norm:
        model.norm = nn.Identity()
    values = hashlib.sha256()
    for name, tensor in sorted(
        {**model.state_dict(), "mean": model.mean, "std": model.std}.items()
    ):
        values.update(name.encode())
        values.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    identity = [
        values.hexdigest(),
        str(model),
        asdict(preprocessing),
        f"onnxruntime {onnxruntime.__version__}",
    ]
    return LocalEmbedder(
        digest(identity),
        preprocessing,
        lambda: on_onnxruntime(to_onnx(model).SerializeToString(), threads),
        facts,
    )


def _released(folder: Path, threads: int) -> LocalEmbedder:
    import onnxruntime

    from unified_embedding import onnx_file

    model, spec = onnx_file.load(folder)
    return LocalEmbedder(
        digest([spec.version, f"onnxruntime {onnxruntime.__version__}"]),
        spec.preprocessing,
        lambda: on_onnxruntime(model.SerializeToString(), threads),
        {"version": spec.version, "name": spec.name},
    )


def _engine(folder: Path, threads: int) -> LocalEmbedder:
    import json

    spec = EmbedderSpec.load(folder / "1")
    record = json.loads((folder / "1" / "engine.json").read_text())
    if record["target"] != "openvino":
        raise DataError(
            f"{folder} holds an engine for {record['target']}; start the server and give "
            "server:HOST:PORT"
        )
    # Of an int8 engine, the precision of what was left unquantised.
    hint = record["environment"].get("not_quantised") or _HINTS[record["precision"]]
    return LocalEmbedder(
        record["engine"],
        spec.preprocessing,
        lambda: _openvino(folder / "1" / "model.xml", hint, threads),
        {"version": spec.version, "engine": record["engine"]},
    )


def _openvino(model: Path, precision: str, threads: int) -> Runner:
    from unified_embedding.serving.openvino_engine import OpenVinoEngine

    count = threads or len(os.sched_getaffinity(0))
    engine = OpenVinoEngine(
        model, precision=precision, threads=count, streams=count, max_batch_size=MAX_BATCH_SIZE
    )
    return engine.embed_all
