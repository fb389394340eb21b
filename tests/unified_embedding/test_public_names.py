"""What `unified_embedding` itself offers, and that paths may be text or objects everywhere."""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unified_embedding
from unified_embedding import EmbedderSpec, Origin, Preprocessing
from unified_embedding.gallery import Gallery

HIDDEN = "import sys; sys.modules[{module!r}] = None; from unified_embedding import {name}"
PUBLIC = (
    "unified_embedding",
    "unified_embedding.client",
    "unified_embedding.index",
    "unified_embedding.index.export",
    "unified_embedding.corpus.store",
    "unified_embedding.gallery",
    "unified_embedding.onnx_file",
    "unified_embedding.spec",
)


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )


def test_the_package_loads_no_extra_before_it_is_named() -> None:
    loaded = "print(json.dumps([name for name in ('grpc', 'pyarrow', 'faiss') if name in modules]))"
    done = python(
        "import json; from sys import modules; import unified_embedding as u; dir(u)\n" + loaded
    )
    assert json.loads(done.stdout) == []


def test_every_name_is_there() -> None:
    for name in unified_embedding.__all__:
        assert getattr(unified_embedding, name).__name__ == name
        assert name in dir(unified_embedding)
    with pytest.raises(AttributeError, match="has no attribute 'CodeIndexes'"):
        unified_embedding.CodeIndexes  # noqa: B018


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("EmbedderClient", "tritonclient", "client"),
        ("AsyncEmbedderClient", "grpc", "client"),
        ("CodeIndex", "faiss", "search"),
        ("CodeIndex", "pyarrow", "search"),
    ],
)
def test_a_missing_extra_is_named(name: str, module: str, extra: str) -> None:
    done = python(HIDDEN.format(module=module, name=name))
    assert done.returncode == 1
    assert f"pip install 'unified-embedding[{extra}]'" in done.stderr


def public_callables(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    for name in names:
        found = getattr(module, name)
        if not getattr(found, "__module__", "").startswith("unified_embedding"):
            continue
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found) and not issubclass(found, Exception):
            yield f"{name}()", found
            for method, raw in vars(found).items():
                call = getattr(raw, "__func__", raw)
                if not method.startswith("_") and inspect.isfunction(call):
                    yield f"{name}.{method}", call


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_argument_insists_on_a_path_object(name: str) -> None:
    pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
    insisting = [
        f"{call}({argument})"
        for call, function in public_callables(import_module(name))
        for argument, parameter in inspect.signature(function).parameters.items()
        if parameter.annotation in (Path, "Path", Path | None)
        # What `load` and `open` fill in, and callers do not construct.
        and not call.endswith(("Picture()", "Gallery()", "CodeIndex()", ".read", ".write", ".file"))
    ]
    assert insisting == []


class Place(os.PathLike[str]):
    """A path that is no pathlib.Path, as those of fsspec or tempfile wrappers are."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@pytest.mark.parametrize("kind", [str, Place], ids=["text", "object"])
def test_paths_may_be_text_or_objects(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    from unified_embedding.corpus.store import Store
    from unified_embedding.index import Batch, CodeIndex
    from unified_embedding.index.export import to_milvus, to_postgres

    origin, codes = Origin("0123456789ab", "made-up"), np.array([[1], [2]], np.uint8)
    empty = CodeIndex.create(kind(tmp_path / "new"), origin, 8)
    assert len(empty) == 0
    CodeIndex.build(kind(tmp_path / "index"), [Batch(["a", "b"], codes)], origin, 8)
    index = CodeIndex.open(kind(tmp_path / "index"))
    assert [hit.id for hit in index.search(codes[:1], origin, k=1).hits(0)] == ["a"]
    assert to_postgres(index, kind(tmp_path / "sql"))[0].is_file()
    assert to_milvus(index, kind(tmp_path / "milvus"))[0].is_file()

    assert Store(kind(tmp_path / "corpus")).place == str(tmp_path / "corpus")

    (tmp_path / "a.png").touch()
    (tmp_path / "gallery.csv").write_text("image,product,role,name\na.png,p,catalogue,n\n")
    assert Gallery.load(kind(tmp_path)).folder == tmp_path

    spec = EmbedderSpec(
        name="made-up",
        license="MIT",
        trunk="made-up",
        weights="random",
        dim=8,
        preprocessing=Preprocessing(),
        graph_sha256="0" * 64,
    )
    spec.save(kind(tmp_path))
    assert EmbedderSpec.load(kind(tmp_path)) == spec
