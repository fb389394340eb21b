"""`serve --engine`: no engine but the expected one, with the threads of the machine it runs on."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("typer", reason="the extra `client` is not installed")

from unified_embedding.cli import serve
from unified_embedding.errors import SetupError
from unified_embedding.serving import model_config, repository

VERSION, ENGINE = "c3050c6549f6", "openvino-fp32-642cd157eed9"
CONFIG = """\
backend: "python"
parameters { key: "threads" value { string_value: "64" } }
parameters { key: "streams" value { string_value: "64" } }
parameters { key: "slice" value { string_value: "4" } }
"""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine as `make engine` leaves one."""
    folder = tmp_path / "built" / "embedder"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "1" / "model.xml").write_text("<net/>")
    record = {"version": VERSION, "engine": ENGINE, "target": "openvino", "gates": {"figures": {}}}
    record |= {"files": repository.file_hashes(folder)}
    (folder / "1" / "engine.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    "expected",
    [VERSION, f"{VERSION} openvino", f"{VERSION} openvino-fp32", f"{VERSION} {ENGINE}"],
)
def test_the_expected_engine_is_served(engine: Path, expected: str) -> None:
    repository.expect(engine, expected)


@pytest.mark.parametrize(
    "expected",
    [
        "4a135b631b34",
        "4a135b631b3",  # Half a version is none.
        f"{VERSION} openvino-bf16",
        f"{VERSION} openvino-fp3",
        f"{VERSION} openvino-fp32-642cd157eed8",
        f"{VERSION} {ENGINE} ",
        "",
        ".*",
    ],
)
def test_every_other_one_is_refused_by_name(engine: Path, expected: str) -> None:
    with pytest.raises(SetupError, match=f"{VERSION} {ENGINE}, and .* is expected"):
        repository.expect(engine, expected)


def test_a_changed_file_is_refused_whatever_is_expected(engine: Path) -> None:
    (engine / "1" / "model.xml").write_text("<other/>")
    with pytest.raises(SetupError, match="is not the file that was gated"):
        repository.expect(engine, VERSION)


def test_threads_are_those_of_the_machine_that_serves(engine: Path, tmp_path: Path) -> None:
    into = tmp_path / "served"
    into.mkdir()
    repository.add_engine(engine, into)
    repository.use_cores(into, 3)
    parameters = model_config.read(into / "embedder").parameters
    told = {name: value.string_value for name, value in parameters.items()}
    assert told == {"threads": "3", "streams": "3", "slice": "4"}
    # What was gated stays as it was.
    repository.gated(engine)


def test_threads_of_a_gpu_engine_are_refused(engine: Path, tmp_path: Path) -> None:
    (engine / "config.pbtxt").write_text('backend: "tensorrt"\n')
    with pytest.raises(ValueError, match="computes on no CPU"):
        repository.use_cores(engine.parent, 3)
    with pytest.raises(ValueError, match="at least one core, not 0"):
        repository.use_cores(engine.parent, 0)


def test_serve_ends_before_it_lays_out_anything(engine: Path, tmp_path: Path) -> None:
    into = tmp_path / "served"
    with pytest.raises(SystemExit, match=r"serve: .* is expected"):
        serve.main(engine=engine, expect=f"{VERSION} openvino-bf16", repository=into)
    with pytest.raises(SystemExit, match="go with --engine"):
        serve.main(expect=VERSION, repository=into)
    assert not into.exists()
