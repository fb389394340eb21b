"""The core and the model.py files under the production image's Python 3.12 and numpy 2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("numpy==2.4.6", "pillow==13.0.0", "openvino==2026.4.1", "pytest==9.2.0")
PLUS = ("hypothesis==6.170.15",)
ROOMS = ("tests/unified_embedding/test_codes.py", "tests/unified_embedding/test_image.py",
         "tests/unified_embedding/test_spec.py", "tests/unified_embedding/test_retrieval.py",
         "tests/model_repository")  # fmt: skip


def python312() -> str | None:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which("python3.12"), *map(str, sorted(pyenv.glob("3.12*/bin/python3.12")))]
    for candidate in filter(None, found):
        probe = subprocess.run([candidate, "-c", "import venv, ensurepip"], check=False)
        if probe.returncode == 0:
            return candidate
    return None


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = python312()
    if python is None:
        pytest.skip("no Python 3.12 on this machine")
    cache = Path(sys.prefix) / "share" / "unified-embedding" / "production-venv"
    stamp = cache / "stamp"
    wanted = " ".join((*PACKAGES, *PLUS))
    if not stamp.is_file() or stamp.read_text() != wanted:
        subprocess.run([python, "-m", "venv", "--clear", cache], check=True)
        install = [cache / "bin/pip", "install", "--quiet", *PACKAGES, *PLUS]
        if subprocess.run(install, check=False).returncode:
            pytest.skip("the package index cannot be reached")
        stamp.write_text(wanted)
    return cache / "bin" / "python"


def test_core_and_models_pass_under_python_312_and_numpy_2(root: Path, production: Path) -> None:
    run = subprocess.run(
        [production, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ROOMS],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
