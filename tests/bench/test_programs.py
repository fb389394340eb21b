"""The load programs say in one sentence what they lack, and exit 1."""

from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("hdrh", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from programs import run_program


@pytest.mark.parametrize("program", ["load", "capacity", "loadgen", "soak"])
def test_a_stopped_server(root: Path, tmp_path: Path, program: str) -> None:
    if program == "loadgen" and not find_spec("mlperf_loadgen"):
        pytest.skip("the extra `peers` is not installed")
    done = run_program(root, f"bench/{program}.py", "--out", str(tmp_path), HOST="127.0.0.1:1")
    assert done.returncode == 1
    (sentence,) = done.stderr.strip().splitlines()
    assert sentence.startswith("failed: 127.0.0.1:1 is unavailable")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "missing"), [("serving_bench", "litserve"), ("loadgen", "mlperf_loadgen")]
)
def test_a_missing_peer(root: Path, program: str, missing: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.modules['{missing}'] = None\n"
        f"sys.argv = ['{program}.py']\n"
        f"runpy.run_path('bench/{program}.py', run_name='__main__')\n"
    )
    done = run_program(root, "-c", code)
    assert done.returncode == 1
    (sentence,) = done.stderr.strip().splitlines()
    assert "not installed" in sentence
    assert f"make {'bench' if program == 'serving_bench' else program}" in sentence


def test_an_unknown_embedder(root: Path) -> None:
    if not (find_spec("litserve") and find_spec("torch")):
        pytest.skip("the extra `peers` is not installed")
    done = run_program(root, "bench/serving_bench.py", "--embedders", "lite0,vgg")
    assert done.returncode == 1
    assert "--embedders lite0,vgg: use some of lite0, se, se-int8" in done.stderr
