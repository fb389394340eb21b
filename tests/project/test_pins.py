"""Every pinned package that is installed imports, and the pins are what the extras need."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest

# Imported in a process of their own: they patch the standard library for everyone else.
ALONE = ("gevent", "locust", "geventhttpclient")
# Their import needs what a CPU machine lacks, or they hold no module of their own.
NO_IMPORT = re.compile(r"^(nvidia-(?!pytriton)|cuda-|triton$|tensorrt)")


def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules() -> dict[str, list[str]]:
    """Importable top-level modules by distribution."""
    found: dict[str, list[str]] = {}
    for module, owners in packages_distributions().items():
        if module.isidentifier() and not module.startswith("_"):
            for owner in owners:
                found.setdefault(normal(owner), []).append(module)
    return found


def installed(root: Path) -> dict[str, str]:
    result = {}
    for name, version in pins(root).items():
        try:
            result[normal(name)] = distribution(name).version
        except PackageNotFoundError:
            continue
        assert result[normal(name)] == version, f"{name} is not the pinned version"
    return result


def run_imports(names: list[str]) -> str:
    code = (
        "import importlib, sys, warnings; warnings.simplefilter('ignore')\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except BaseException as error: print(name, type(error).__name__, error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=False
    )
    return run.stdout + (run.stderr[-2000:] if run.returncode else "")


def test_every_pinned_package_imports(root: Path) -> None:
    by_distribution = modules()
    wanted: list[str] = []
    for name in installed(root):
        if NO_IMPORT.match(name):
            continue
        wanted += by_distribution.get(name, [])
    if len(wanted) < 50:
        pytest.skip("the pinned packages are not installed in this environment")
    together = sorted(set(wanted) - set(ALONE))
    problems = [run_imports(together), *(run_imports([name]) for name in ALONE if name in wanted)]
    assert "".join(problems) == ""


def test_the_pins_keep_the_embedded_server_working(root: Path) -> None:
    """Triton 2.51 answers with empty tensors under numpy 2; pyarrow 26 refuses numpy 1."""
    known = {normal(name): version for name, version in pins(root).items()}
    assert known["numpy"] == "1.26.4"
    assert int(known["pyarrow"].split(".")[0]) < 26
