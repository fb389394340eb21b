"""The images cannot be built here: everything about them that can be checked without docker."""

import fnmatch
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from unified_embedding.image import SETTINGS

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

WORKDIR = "/opt/unified-embedding"
WIDE = {**os.environ, "COLUMNS": "200"}


@dataclass(frozen=True)
class Instruction:
    """One Dockerfile instruction of one stage, continuation lines joined."""

    stage: str
    name: str
    argument: str


@pytest.fixture(scope="module")
def dockerfile(root: Path) -> list[Instruction]:
    text = (root / "deploy/Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found, stage = [], ""
    for line in filter(None, joined.splitlines()):
        name, _, argument = line.partition(" ")
        if name == "FROM":
            stage = argument.split(" AS ")[1]
        found.append(Instruction(stage, name, argument.strip()))
    return found


@pytest.fixture(scope="module")
def compose(root: Path) -> dict:
    return yaml.safe_load((root / "deploy/compose.yaml").read_text())


def of(dockerfile: list[Instruction], stage: str, name: str) -> list[str]:
    return [item.argument for item in dockerfile if (item.stage, item.name) == (stage, name)]


def ignored(root: Path, path: str) -> bool:
    """Whether .dockerignore keeps a path, or a folder above it, out of the build context."""
    lines = (root / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    parts = path.split("/")
    prefixes = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    return any(
        fnmatch.fnmatch(prefix, pattern.removeprefix("**/"))
        or (pattern.startswith("**/") and fnmatch.fnmatch(prefix.split("/")[-1], pattern[3:]))
        for pattern in patterns
        for prefix in prefixes
    )


def test_both_stages_stand_on_one_tag_that_is_new_enough(
    dockerfile: list[Instruction], compose: dict
) -> None:
    (tag,) = [item.argument for item in dockerfile if item.name == "ARG"]
    name, _, version = tag.partition("=")
    year, month = version.removesuffix("-py3").split(".")
    assert (int(year), int(month)) >= (26, 8)
    stages = [item.argument for item in dockerfile if item.name == "FROM"]
    assert stages == [
        f"nvcr.io/nvidia/tritonserver:${{{name}}} AS serve",
        "serve AS build-tools",
    ]
    for service in compose["services"].values():
        assert service["build"]["args"] == {name: f"${{{name}:-{version}}}"}


def test_every_copied_source_exists_and_is_not_ignored(
    root: Path, dockerfile: list[Instruction]
) -> None:
    copied = [item.argument.split()[:-1] for item in dockerfile if item.name == "COPY"]
    sources = [source for group in copied for source in group]
    assert len(sources) > 10
    for source in sources:
        assert (root / source).exists(), source
        assert not ignored(root, source), source
    assert not [item for item in dockerfile if item.name == "ADD"]


def test_the_context_leaves_out_what_is_large_or_private(root: Path) -> None:
    for path in (".git", ".venv/bin", "build/out/x", "build/__pycache__", "out", "results/a"):
        assert ignored(root, path), path
    for path in ("build/engine.py", "models/unified-embedder-lite0/embedder.onnx", "demo"):
        assert not ignored(root, path), path


def test_nothing_runs_as_root(dockerfile: list[Instruction]) -> None:
    for stage in ("serve", "build-tools"):
        assert of(dockerfile, stage, "USER")[-1] == "triton-server", stage


def test_shell_commands_parse_and_stop_at_the_first_failure(
    root: Path, dockerfile: list[Instruction]
) -> None:
    commands = [item.argument for item in dockerfile if item.name == "RUN"]
    assert commands
    for command in commands:
        subprocess.run(["sh", "-n", "-c", command], check=True)
        assert ";" not in command, command
    subprocess.run(["sh", "-n", root / "deploy/build_engine.sh"], check=True)


def test_pip_is_pinned_except_for_the_images_own_numpy(dockerfile: list[Instruction]) -> None:
    installs = [
        part
        for item in dockerfile
        if item.name == "RUN"
        for part in re.split(r"&&", item.argument)
        if "pip install" in part
    ]
    assert len(installs) == 5
    for install in installs:
        assert "--constraint /tmp/constraints.txt" in install or "--no-deps" in install, install
    assert sum("grep -v '^numpy=='" in item.argument for item in dockerfile) == 2


def inside(root: Path, word: str) -> Path | None:
    """The checkout's file that a path inside the image stands for."""
    if word.startswith(f"{WORKDIR}/"):
        return root / word.removeprefix(f"{WORKDIR}/")
    return root / word if re.match(r"(build|clients|deploy)/\S+\.(py|sh)$", word) else None


def test_every_command_names_a_file_that_exists(
    root: Path, dockerfile: list[Instruction], compose: dict
) -> None:
    assert of(dockerfile, "serve", "WORKDIR") == [WORKDIR]
    commands = [item.argument for item in dockerfile if item.name in ("CMD", "HEALTHCHECK", "RUN")]
    commands += [" ".join(service["command"]) for service in compose["services"].values()]
    commands.append((root / "deploy/build_engine.sh").read_text())
    named = [
        path
        for command in commands
        for word in re.findall(r"[\w./-]+", command)
        if (path := inside(root, word)) is not None
    ]
    assert {path.name for path in named} == {
        "build_engine.sh", "engine.py", "gpu_check.py", "production_repository.py",
        "status.py",
    }  # fmt: skip
    for path in named:
        assert path.is_file(), path


def test_the_healthcheck_asks_for_a_real_picture(root: Path, dockerfile: list[Instruction]) -> None:
    (check,) = of(dockerfile, "serve", "HEALTHCHECK")
    command = yaml.safe_load(check.split("CMD ")[1])
    assert command[:2] == ["python3", f"{WORKDIR}/clients/status.py"]
    help_text = subprocess.run(
        [sys.executable, "clients/status.py", "--help"],
        cwd=root, capture_output=True, text=True, check=True, env=WIDE,
    ).stdout  # fmt: skip
    for flag in [word for word in command if word.startswith("--")]:
        assert flag in help_text


def test_the_engine_is_built_with_a_gpu_before_the_server_starts(compose: dict) -> None:
    engine, server = compose["services"]["engine"], compose["services"]["server"]
    assert server["depends_on"] == {"engine": {"condition": "service_completed_successfully"}}
    assert server["restart"] == "unless-stopped"
    assert "restart" not in engine
    for service in compose["services"].values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
    shared = [volume.split(":") for volume in engine["volumes"] + server["volumes"]]
    assert ["repository", "/srv/unified-embedding"] in shared
    assert ["repository", "/srv/unified-embedding", "ro"] in shared
    named = {volume[0] for volume in shared if not volume[0].startswith(".")}
    assert named <= set(compose["volumes"])


def test_the_server_is_reachable_from_this_machine_only(compose: dict) -> None:
    for port in compose["services"]["server"]["ports"]:
        assert port.startswith("127.0.0.1:")
    for service in compose["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_tritonserver_knows_every_flag(compose: dict) -> None:
    pytest.importorskip("pytriton", reason="the extra `serve` is not installed")
    command = compose["services"]["server"]["command"]
    assert command[0] == "tritonserver"
    run = subprocess.run(
        [sys.executable, "-m", "unified_embedding.serving.tritonserver", "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    known = set(re.findall(r"--[a-z0-9-]+", run.stdout + run.stderr))
    used = {word.partition("=")[0] for word in command[1:]}
    assert len(known) > 50
    assert used <= known


def test_the_one_shot_service_passes_settings_that_the_build_step_has(
    root: Path, compose: dict
) -> None:
    assert set(compose["services"]["engine"]["environment"]) == {"MODEL", "PREPROCESS_INSTANCES"}
    script = (root / "deploy/build_engine.sh").read_text()
    commands = [line for line in re.sub(r"\\\n\s*", "", script).splitlines() if '"$python"' in line]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.removeprefix("exec "))
        help_text = subprocess.run(
            [sys.executable, words[1], "--help"],
            cwd=root, capture_output=True, text=True, check=True, env=WIDE,
        ).stdout  # fmt: skip
        for flag in [word for word in words if word.startswith("--")]:
            assert flag in help_text, flag


def test_every_limit_is_taken_over_from_the_environment(compose: dict) -> None:
    assert set(compose["services"]["server"]["environment"]) == set(SETTINGS)
