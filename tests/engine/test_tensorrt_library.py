"""Finding the TensorRT that Triton loads, and refusing a package of another version.

The libraries are stand-ins compiled on the spot: the real ones need NVIDIA's image.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from unified_embedding.engine.tensorrt import library as tensorrt_library
from unified_embedding.errors import BuildError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def compile_library(source: str, path: Path, *flags: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", str(path), *flags]
    subprocess.run(command, input=source, text=True, check=True)
    return path


def nvinfer(folder: Path, version: str) -> Path:
    parts = zip(("Major", "Minor", "Patch", "Build"), version.split("."), strict=True)
    source = "".join(f"int getInferLib{name}Version(void) {{ return {n}; }}\n" for name, n in parts)
    name = f"libnvinfer.so.{version.split('.')[0]}"
    return compile_library(source, folder / name, f"-Wl,-soname,{name}")


@pytest.fixture
def triton(tmp_path: Path) -> Path:
    """A Triton folder whose TensorRT backend needs a libnvinfer.so.11."""
    library = nvinfer(tmp_path / "lib", "11.4.0.106")
    compile_library(
        "int getInferLibMajorVersion(void); int load(void) { return getInferLibMajorVersion(); }",
        tmp_path / "triton/backends/tensorrt/libtriton_tensorrt.so",
        str(library),
        f"-Wl,-rpath,{library.parent}",
    )
    return tmp_path / "triton"


def test_the_library_that_the_loader_gives_the_backend_is_found(
    triton: Path, tmp_path: Path
) -> None:
    assert tensorrt_library.triton_has_tensorrt(triton)
    library = tensorrt_library.triton_library(triton)
    assert library == tmp_path / "lib/libnvinfer.so.11"
    assert tensorrt_library.library_version(library) == "11.4.0.106"


def test_no_backend_and_no_library(triton: Path, tmp_path: Path) -> None:
    assert tensorrt_library.triton_library(tmp_path / "nothing") is None
    assert not tensorrt_library.triton_has_tensorrt(tmp_path / "nothing")
    shutil.rmtree(tmp_path / "lib")
    with pytest.raises(BuildError, match="needs a libnvinfer that the loader does not find"):
        tensorrt_library.triton_library(triton)


def test_a_library_without_the_functions_is_refused(tmp_path: Path) -> None:
    library = compile_library("int nothing;", tmp_path / "libnvinfer.so.11")
    with pytest.raises(BuildError, match="does not tell its version"):
        tensorrt_library.library_version(library)


def test_versions_that_differ_are_both_named() -> None:
    tensorrt_library.check_agreement("11.4.0.106", "11.4.0.106", version_compatible=False)
    for package in ("11.4.0.105", "11.3.0.99", "10.12.0.36", "12.0.0.1"):
        with pytest.raises(BuildError) as caught:
            tensorrt_library.check_agreement(package, "11.4.0.106", version_compatible=False)
        assert f"TensorRT {package}" in str(caught.value)
        assert "TensorRT 11.4.0.106" in str(caught.value)
        assert "pip install tensorrt==11.4.0.106" in str(caught.value)


@pytest.mark.parametrize(
    ("package", "loads"),
    [("11.3.0.99", True), ("10.12.0.36", True), ("11.4.1.1", False), ("9.3.0.1", False)],
)
def test_a_version_compatible_plan_goes_forward_only(package: str, loads: bool) -> None:
    if loads:
        tensorrt_library.check_agreement(package, "11.4.0.106", version_compatible=True)
    else:
        with pytest.raises(BuildError, match=package):
            tensorrt_library.check_agreement(package, "11.4.0.106", version_compatible=True)
