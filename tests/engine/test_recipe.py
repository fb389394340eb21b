"""A change of what an engine or its gates depend on builds it again; nothing else does."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the extra `build` is not installed")
pytest.importorskip("openvino", reason="the extra `build` is not installed")

import tiny_embedder as tiny

from unified_embedding import onnx_file
from unified_embedding.engine import recipe

ENGINE = "unified_embedding.engine"
BUILDING = f"{ENGINE}.building"

# Compiles, checks and installs an engine, then tells which files of the checkout were run.
BUILD = """
import json, os, sys
from pathlib import Path
from unified_embedding.engine import building
from unified_embedding.engine.targets import choose
from unified_embedding.engine.tensorrt.plan_options import PlanOptions
from unified_embedding.gallery import Gallery

root = Path.cwd()
repository = Path(sys.argv[1])
repository.mkdir()
target = choose("openvino", "fp32", PlanOptions(), repository)
building.build(Path(sys.argv[2]), target, repository, Gallery.load(Path(sys.argv[3])))
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
print(json.dumps([file for file in files if file and file.startswith(f"{root}{os.sep}")]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedder: which files a build depends on is the same for every one."""
    folder, graph = tmp_path_factory.mktemp("tiny"), tiny.tiny_embedder()
    onnx_file.save(graph, tiny.spec_of(graph), folder)
    return folder


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's own code, which a test may change; models and pictures by link."""
    folder = tmp_path_factory.mktemp("recipe") / "checkout"
    folder.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "out", "tuning.json")
    for name in ("build", "unified_embedding"):
        shutil.copytree(root / name, folder / name, ignore=unwanted)
    for name in ("models", "demo", "docs"):
        (folder / name).symlink_to(root / name)
    return folder


def run(tree: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_recipe_is_what_a_build_runs(
    tree: Path, model: Path, few_products: Path, tmp_path: Path
) -> None:
    told = run(tree, "-c", BUILD, tmp_path / "repository", model, few_products)
    ran = {str(Path(file).relative_to(tree)) for file in json.loads(told.splitlines()[-1])}
    named = set(recipe.code([BUILDING, f"{ENGINE}.openvino.target"], tree / "unified_embedding"))
    engine = ("engine/building", "serving/openvino_engine")
    assert {f"unified_embedding/{name}.py" for name in engine} <= ran
    assert ran <= named
    # What was named and not run: imports inside functions, and files that are copied.
    assert "unified_embedding/engine/openvino/openvino_model.py" in named - ran
    for other in ("tensorrt/target", "tuning/report", "gates/server_gate"):
        path = f"unified_embedding/engine/{other}.py"
        assert (tree / path).is_file()
        assert path not in named
    # No client, index or training code decides an engine.
    assert not [name for name in named if name.startswith("unified_embedding/client")]


def test_an_engine_is_built_again_when_and_only_when_its_code_changed(
    tree: Path, model: Path, few_products: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    options = ["--model", model, "--precision", "fp32", "--repository", repository]
    options += ["--gallery", few_products]
    assert "installed engine" in run(tree, "build/engine.py", *options)
    for report in (
        "unified_embedding/cli/engines_table.py",
        "unified_embedding/engine/tuning/report.py",
        "unified_embedding/client/_aio.py",
    ):
        with (tree / report).open("a") as file:
            file.write("\n# Changed.\n")
    assert "up to date" in run(tree, "build/engine.py", *options)
    with (tree / "unified_embedding/serving/openvino_engine.py").open("a") as file:
        file.write("\n# Changed.\n")
    assert "installed engine" in run(tree, "build/engine.py", *options)
    assert "up to date" in run(tree, "build/engine.py", *options)


@pytest.mark.parametrize("target", ["openvino.target", "tensorrt.target", "tensorrt.rtx_target"])
def test_each_file_of_the_recipe_counts_and_no_other(tree: Path, target: str) -> None:
    def found() -> dict[str, str]:
        return recipe.code([BUILDING, f"{ENGINE}.{target}"], tree / "unified_embedding")

    before = found()
    expected = {
        "unified_embedding/engine/gates/gates.py",
        "unified_embedding/engine/gates/consistency.py",
        f"unified_embedding/engine/{target.replace('.', '/')}.py",
        "unified_embedding/codes.py",
        "unified_embedding/spec.py",
    }
    assert expected <= set(before)
    assert any(name.startswith("unified_embedding/image") for name in before)
    with contextlib.ExitStack() as stack:
        for name in before:
            stack.enter_context(changed(tree / name))
        after = found()
        # Each file by itself, so that one of them is enough.
        assert after == {
            name: hashlib.sha256((tree / name).read_bytes()).hexdigest() for name in before
        }
    assert [name for name in before if after[name] == before[name]] == []
    with contextlib.ExitStack() as stack:
        for path in [*(tree / "build").rglob("*.py"), *(tree / "unified_embedding").rglob("*.py")]:
            if path.relative_to(tree).as_posix() not in before:
                stack.enter_context(changed(path))
        assert found() == before


@contextlib.contextmanager
def changed(path: Path) -> Iterator[None]:
    text = path.read_bytes()
    path.write_bytes(text + b"\n# Changed.\n")
    yield
    path.write_bytes(text)


def test_every_way_to_import_is_followed(tmp_path: Path) -> None:
    library = tmp_path / "unified_embedding"
    files = {
        "__init__.py": "NAME = 1\n",
        "start.py": "import numpy\nimport unified_embedding.a\n"
                    "from unified_embedding import rule, NAME\n"
                    "def later():\n    from unified_embedding.deep.inner import thing\n"
                    "COPY = 'model.py'\n",
        "a.py": "import unified_embedding.start\n",
        "model.py": "import unified_embedding.unused\n",
        "unused.py": "",
        "rule.py": "",
        "deep/__init__.py": "",
        "deep/inner.py": "from .near import x\nfrom .. import far\nfrom . import by",
        "deep/near.py": "",
        "deep/by.py": "",
        "far.py": "",
        "alone.py": "",
        "engine/__init__.py": "",
        "engine/building.py": "from unified_embedding import a\n"
                              "def gate():\n    import unified_embedding.unused\n",
    }  # fmt: skip
    for name, text in files.items():
        path = library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    wanted = {"__init__.py", "start.py", "a.py", "model.py", "rule.py", "far.py",
              "deep/__init__.py", "deep/inner.py", "deep/near.py", "deep/by.py"}  # fmt: skip
    found = recipe.code(["unified_embedding.start"], library)
    assert set(found) == {f"unified_embedding/{name}" for name in wanted}
    # The build's own choices are named by its caller.
    wanted |= {"engine/__init__.py", "engine/building.py"}
    found = recipe.code(["unified_embedding.engine.building"], library)
    assert set(found) == {f"unified_embedding/{name}" for name in wanted}
