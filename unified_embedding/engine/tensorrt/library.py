"""Which TensorRT a plan would be built with, and which one Triton loads: they must be one.

A plan loads only in the version that built it, to the build number (TensorRT documentation,
"Engine compatibility"). Triton's own complaint about it is hard to read, so the build step
compares the two libraries before it spends minutes.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from unified_embedding.errors import BuildError

TRITON_ROOT: Final = Path("/opt/tritonserver")
_BACKEND: Final = Path("backends/tensorrt/libtriton_tensorrt.so")
_LIBRARY: Final = re.compile(r"libnvinfer\.so(\.\d+)*$")
# Run in a process of its own: two libnvinfer in one process would share their symbols.
_ASK: Final = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
parts = ("Major", "Minor", "Patch", "Build")
print(*(getattr(library, f"getInferLib{part}Version")() for part in parts), sep=".")
"""


def triton_has_tensorrt(root: Path = TRITON_ROOT) -> bool:
    """True where a Triton with the TensorRT backend stands, as in NVIDIA's image."""
    return (root / _BACKEND).is_file()


def triton_library(root: Path = TRITON_ROOT) -> Path | None:
    """The libnvinfer that Triton's TensorRT backend loads; None where there is no such backend.

    Raises:
        BuildError: the backend is there and the loader finds no libnvinfer for it.
    """
    backend = root / _BACKEND
    if not backend.is_file():
        return None
    listed = subprocess.run(["ldd", str(backend)], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        name, _, rest = line.strip().partition(" => ")
        path = rest.rpartition(" (")[0]
        if _LIBRARY.fullmatch(name) and path:
            return Path(path)
    raise BuildError(
        f"{backend} needs a libnvinfer that the loader does not find; Triton could not serve a "
        f"plan here either (ldd said: {(listed.stdout + listed.stderr).strip()[-300:]})"
    )


def loaded_library() -> Path | None:
    """The libnvinfer that this process has loaded, if any."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if _LIBRARY.fullmatch(path.name):
            return path
    return None


def library_version(library: Path) -> str:
    """Version of a libnvinfer, for instance "11.4.0.106". Raises BuildError."""
    command = [sys.executable, "-c", _ASK, str(library)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        reason = run.stderr.strip().splitlines()[-1:]
        raise BuildError(f"{library} does not tell its version ({''.join(reason)})")
    return run.stdout.strip()


def check_agreement(package: str, triton: str, version_compatible: bool) -> None:
    """Compare the versions that build and load a plan, both like "11.4.0.106".

    A version-compatible plan also loads in later versions of its own major version, and a
    TensorRT 10 one in TensorRT 11.

    Raises:
        BuildError: Triton could not load the plan; both versions are named.
    """
    if package == triton:
        return
    built, loads = _numbers(package), _numbers(triton)
    if version_compatible and built <= loads and (loads[0] - built[0]) in (0, 1):
        return
    raise BuildError(
        f"the Python package tensorrt builds with TensorRT {package}, but Triton here loads "
        f"TensorRT {triton} and could not read the plan; install the matching package: "
        f"pip install tensorrt=={triton}"
    )


def builder_version(trt: Any) -> str:
    """Version of the libnvinfer that the imported package `trt` builds with."""
    library = loaded_library()
    return library_version(library) if library is not None else str(trt.__version__)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def main() -> None:
    """Print the version of the TensorRT that Triton loads; deploy/Dockerfile installs by it."""
    library = triton_library()
    if library is None:
        sys.exit(f"no Triton with a TensorRT backend in {TRITON_ROOT}")
    try:
        print(library_version(library))
    except BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
