import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from unified_embedding.errors import SetupError
from unified_embedding.serving import backends, tritonserver
from unified_embedding.serving.local_server import free_ports
from unified_embedding.serving.tritonserver import check_ports, check_repositories, find_installed


def script(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tritonserver"
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_another_server_on_path_wins_and_our_own_script_never_does(tmp_path: Path) -> None:
    ours = "#!/usr/bin/python\nfrom unified_embedding.serving.tritonserver import main\nmain()\n"
    script(tmp_path / "a", ours)
    script(tmp_path / "b", ours)
    real = script(tmp_path / "c", "#!/bin/sh\necho the real one $@\n")
    path = os.pathsep.join(str(tmp_path / name) for name in "abc")
    assert find_installed(path) == real
    assert find_installed(str(tmp_path / "a")) in (None, tritonserver.IMAGE_BINARY)


def test_it_becomes_the_other_server_with_every_flag(tmp_path: Path) -> None:
    script(tmp_path, '#!/bin/sh\necho "$@"\nexit 7\n')
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "unified_embedding.serving.tritonserver",
            "--model-repository=x",
            "--a",
            "b",
        ],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (7, "--model-repository=x --a b\n")


@pytest.mark.parametrize("form", [["--model-repository={}"], ["--model-store", "{}"]])
def test_a_repository_without_an_engine_says_make_engine(tmp_path: Path, form: list[str]) -> None:
    arguments = [part.format(tmp_path) for part in form]
    check_repositories(arguments)  # somebody else's repository is none of our business
    (tmp_path / "unified_embedding").mkdir()
    with pytest.raises(SetupError, match="run `make engine` first"):
        check_repositories(arguments)
    (tmp_path / "embedder").mkdir()
    (tmp_path / "embedder" / "config.pbtxt").touch()
    check_repositories(arguments)
    # Each embedder of the repository has to be there: Triton loads all models or none.
    (tmp_path / "v2-unified_embedding").mkdir()
    with pytest.raises(SetupError, match="run `make engine PREFIX=v2-` first"):
        check_repositories(arguments)
    (tmp_path / "v2-embedder").mkdir()
    (tmp_path / "v2-embedder" / "config.pbtxt").touch()
    check_repositories(arguments)


def test_without_any_server_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "wheel_root", lambda: None)
    if tritonserver.IMAGE_BINARY.is_file():
        pytest.skip("this is NVIDIA's image, which has a server")
    with pytest.raises(SetupError, match=r"pip install 'unified-embedding\[serve\]'"):
        tritonserver.resolve([], {"PATH": ""})


def test_the_embedded_server_is_on_loopback_unless_told_otherwise() -> None:
    pytest.importorskip("pytriton", reason="the extra `serve` is not installed")
    command, environment, _ = tritonserver.resolve(["--http-address=0.0.0.0"], {"PATH": "/nowhere"})
    assert "--grpc-address=127.0.0.1" in command
    assert "--metrics-address=127.0.0.1" in command
    assert [flag for flag in command if flag.startswith("--http-address")] == [
        "--http-address=0.0.0.0"
    ]
    assert command[-1] == "--http-address=0.0.0.0"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) > 2**20


@pytest.fixture
def ours(tmp_path: Path) -> str:
    """The flag for a repository of ours."""
    pytest.importorskip("pytriton", reason="the extra `serve` is not installed")
    (tmp_path / "ours" / "unified_embedding").mkdir(parents=True)
    return f"--model-repository={tmp_path / 'ours'}"


def started(*arguments: str, **environment: str) -> tritonserver.Start:
    return tritonserver.resolve(arguments, {"PATH": "/nowhere", **environment})


def restrictions(command: list[str]) -> list[str]:
    return [argument for argument in command if "-restricted-" in argument]


def test_what_only_an_operator_may_do_asks_for_a_key_that_nobody_knows(ours: str) -> None:
    http, grpc = restrictions(started(ours).command)
    apis = "shared-memory,model-repository,trace,logging"
    assert http.startswith(f"--http-restricted-api={apis}:operator-key=")
    assert grpc.startswith(f"--grpc-restricted-protocol={apis}:operator-key=")
    key = http.rpartition("=")[2]
    assert key == grpc.rpartition("=")[2]
    assert len(key) >= 32
    assert key not in " ".join(started(ours).command)


def test_an_operator_may_choose_the_key(ours: str) -> None:
    chosen = started(ours, UNIFIED_EMBEDDING_OPERATOR_KEY="a-key-of-20-letters-")
    assert all(flag.endswith("=a-key-of-20-letters-") for flag in restrictions(chosen.command))
    assert len(restrictions(chosen.command)) == 2
    # The models' processes need not know it.
    assert tritonserver.OPERATOR_KEY not in chosen.environment
    for bad in ("short", "a key with blanks in it", "a-key:with=signs,inside"):
        with pytest.raises(SetupError, match="UNIFIED_EMBEDDING_OPERATOR_KEY must be 16 to 128"):
            started(ours, UNIFIED_EMBEDDING_OPERATOR_KEY=bad)


@pytest.mark.parametrize(
    "own", ["--http-restricted-api=trace:a=b", "--grpc-restricted-protocol=trace:a=b"]
)
def test_own_restrictions_are_the_only_ones(ours: str, own: str) -> None:
    assert restrictions(started(ours, own).command) == [own]


def test_models_whose_configurations_are_complete_are_started_once(
    ours: str, tmp_path: Path
) -> None:
    complete = "--disable-auto-complete-config"
    (tmp_path / "theirs" / "model").mkdir(parents=True)
    theirs = f"--model-repository={tmp_path / 'theirs'}"
    assert started(ours).command.count(complete) == 1
    assert started(ours, complete).command.count(complete) == 1
    for others in ([theirs], [ours, theirs], ["--help"]):
        assert complete not in started(*others).command


def test_only_the_embedded_server_with_our_models_is_looked_after(
    ours: str, tmp_path: Path
) -> None:
    assert started(ours).supervised
    assert started("--model-repository", str(tmp_path / "ours")).supervised
    (tmp_path / "theirs" / "model").mkdir(parents=True)
    theirs = started(f"--model-repository={tmp_path / 'theirs'}")
    assert not theirs.supervised
    assert restrictions(theirs.command) == []
    assert not started("--help").supervised
    # NVIDIA's own, or any other.
    real = script(tmp_path / "bin", "#!/bin/sh\n")
    other = tritonserver.resolve([ours], {"PATH": str(real.parent)})
    assert other == ([str(real), ours], {"PATH": str(real.parent)}, False)


def test_numpy_2_is_refused_because_it_empties_every_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.4.0")
    with pytest.raises(SetupError, match=r"numpy 2\.4\.0 makes the embedded Triton"):
        tritonserver._check_numpy()


def test_a_folder_that_is_not_here_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytriton", reason="the extra `serve` is not installed")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match=f"no folder model_repository in {tmp_path}; start"):
        started("--model-repository=model_repository")
    # Not ours to look at.
    started("--model-repository=s3://bucket/models")


def test_a_port_in_use_is_told_before_the_server_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = [
            f"--{name}-port={port}"
            for name, port in zip(("http", "metrics"), free_ports(2), strict=True)
        ]
        with pytest.raises(SetupError, match=rf"port {port} \(grpc\) is in use.*--grpc-port=9001"):
            check_ports([*free, f"--grpc-port={port}"])
        check_ports([*free, "--allow-grpc=false", f"--grpc-port={port}"])
        check_ports([*free, "--reuse-grpc-port=true", f"--grpc-port={port}"])
    check_ports([*free, f"--grpc-port={port}"])
