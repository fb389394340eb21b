"""The images' sources: everything that can be checked without building them.

tests/deploy/test_images_built.py builds the CPU image for real.
"""

import fnmatch
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from unified_embedding.cli.main import loaded
from unified_embedding.image import SETTINGS

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

WORKDIR = "/opt/unified-embedding"
GPU, CPU = "deploy/Dockerfile", "deploy/Dockerfile.cpu"
# Stages whose containers serve or build for others.
RUN_BY_USERS = {GPU: ("serve", "build-tools"), CPU: ("build-tools", "serve", "baked")}
both = pytest.mark.parametrize("file", [GPU, CPU])


@dataclass(frozen=True)
class Instruction:
    """One Dockerfile instruction of one stage, continuation lines joined."""

    stage: str
    name: str
    argument: str


def read(root: Path, file: str) -> list[Instruction]:
    lines = [line for line in (root / file).read_text().splitlines() if line[:1] != "#"]
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


def test_plan_and_server_stand_on_one_tag_that_is_new_enough(root: Path, compose: dict) -> None:
    dockerfile = read(root, GPU)
    (tag,) = [item.argument for item in dockerfile if item.name == "ARG"]
    name, _, version = tag.partition("=")
    year, month = version.partition("-py3")[0].split(".")
    # 26.11 mends a use-after-free in the batcher.
    assert (int(year), int(month)) >= (26, 11)
    stages = [item.argument.split(" AS ")[0] for item in dockerfile if item.name == "FROM"]
    assert set(stages) == {f"nvcr.io/nvidia/tritonserver:${{{name}}}", "serve"}
    # Its default stands in the Dockerfile alone.
    for service in compose["services"].values():
        assert service["build"]["args"] == [name]


def test_no_base_moves(root: Path) -> None:
    (base,) = [
        item.argument for item in read(root, CPU) if item.name == "ARG" and "BASE" in item.argument
    ]
    assert re.fullmatch(r"BASE=\S+:\S*[0-9]{8}\S*(@sha256:[0-9a-f]{64})?", base)
    for file in (GPU, CPU):
        told = [item.argument.split(" AS ") for item in read(root, file) if item.name == "FROM"]
        stages = {stage for _, stage in told}
        assert all("${" in source or source in stages for source, _ in told)


@both
def test_every_copied_source_exists_and_is_not_ignored(root: Path, file: str) -> None:
    copied = [
        item.argument.split()[:-1]
        for item in read(root, file)
        if item.name == "COPY" and not item.argument.startswith("--from")
    ]
    sources = [source for group in copied for source in group]
    assert len(sources) > 8
    for source in sources:
        assert (root / source).exists(), source
        assert not ignored(root, source), source
    assert not [item for item in read(root, file) if item.name == "ADD"]


def test_the_context_leaves_out_what_is_large_or_private(root: Path) -> None:
    for path in (".git", ".venv/bin", "build/out/x", "build/__pycache__", "out", "results/a"):
        assert ignored(root, path), path
    for path in ("build/engine.py", "models/unified-embedder-lite0/embedder.onnx", "demo"):
        assert not ignored(root, path), path


@both
def test_nothing_runs_as_root(root: Path, file: str) -> None:
    dockerfile = read(root, file)
    bases = {
        item.stage: item.argument.split(" AS ")[0] for item in dockerfile if item.name == "FROM"
    }

    def user(stage: str) -> str:
        told = of(dockerfile, stage, "USER")
        return told[-1] if told else user(bases[stage])

    for stage in RUN_BY_USERS[file]:
        assert user(stage) == "10001:10001", stage


@both
def test_shell_commands_parse_and_stop_at_the_first_failure(root: Path, file: str) -> None:
    commands = [item.argument for item in read(root, file) if item.name == "RUN"]
    assert commands
    for command in commands:
        subprocess.run(["sh", "-n", "-c", command], check=True)
        assert ";" not in command, command
    for script in ("deploy/build_engine.sh", "deploy/lock_images.sh"):
        subprocess.run(["sh", "-n", root / script], check=True)


@both
def test_hadolint_finds_nothing(root: Path, file: str) -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.is_file():
        pytest.skip("the extra `deploy` is not installed")
    run = subprocess.run(
        [program, "--failure-threshold", "info", "--ignore", "DL3042", root / file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "")


@both
def test_every_package_comes_with_its_hash(root: Path, file: str) -> None:
    installs = [
        part.split("&&")[0]
        for item in read(root, file)
        if item.name == "RUN"
        for part in re.split(r"pip install ", item.argument)[1:]
    ]
    assert len(installs) >= 4
    for install in installs:
        if "--require-hashes" in install:
            (lock,) = re.findall(r"--requirement (\S+)", install)
            assert (root / lock).is_file()
        else:
            # Our own wheel, and what the image's own library decides.
            assert "--no-deps" in install
            assert "dist/*.whl" in install or "tensorrt-cu13==${version}" in install, install


@both
def test_what_the_wheel_takes_in_is_there_when_it_is_built(root: Path, file: str) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    wanted = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    copied: list[str] = []
    for item in read(root, file):
        if item.name == "COPY" and not item.argument.startswith("--from"):
            copied += item.argument.split()[:-1]
        if item.name == "RUN" and "pip wheel" in item.argument:
            break
    for source in wanted:
        assert any(Path(source).is_relative_to(folder) for folder in copied), source


@pytest.mark.parametrize("name", ["cpu", "cpu-build", "gpu", "gpu-build", "tools"])
def test_locks_are_those_of_the_pins(root: Path, name: str) -> None:
    """A lock that is older than constraints.txt is written anew by `make lock-images`."""
    text = (root / f"deploy/requirements/{name}.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)(?:\[\w,]+)?==([^\s;]+)", text, re.MULTILINE))
    assert len(locked) > 5
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= len(locked)
    pins = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower(): line.partition("==")[2]
        for line in (root / "constraints.txt").read_text().splitlines()
    }
    assert {
        package: (version, pins[package])
        for package, version in locked.items()
        if package in pins and pins[package] != version
    } == {}
    # Triton's image brings its own, which its stub was built with.
    assert ("numpy" in locked) == name.startswith("cpu")


def inside(root: Path, word: str) -> Path | None:
    """The checkout's file that a path inside the image stands for."""
    if word.startswith(f"{WORKDIR}/"):
        return root / word.removeprefix(f"{WORKDIR}/")
    return root / word if re.match(r"(build|clients|deploy)/\S+\.(py|sh)$", word) else None


@both
def test_every_command_names_a_file_that_exists(root: Path, file: str, compose: dict) -> None:
    commands = [
        item.argument for item in read(root, file) if item.name in ("CMD", "HEALTHCHECK", "RUN")
    ]
    commands += [" ".join(service["command"]) for service in compose["services"].values()]
    commands.append((root / "deploy/build_engine.sh").read_text())
    named = [
        path
        for command in commands
        for word in re.findall(r"[\w./-]+", command)
        if (path := inside(root, word)) is not None and path.suffix
    ]
    assert {"build_engine.sh", "engine.py"} <= {path.name for path in named}
    for path in named:
        assert path.is_file(), path


@both
def test_the_healthcheck_asks_every_process_for_a_real_picture(root: Path, file: str) -> None:
    (check,) = of(read(root, file), "serve", "HEALTHCHECK")
    program, command, *words = yaml.safe_load(check.split("CMD ")[1])
    assert (program, command) == ("unified-embedding", "status")
    asked = loaded(command).make_context(command, words).params
    assert asked["as_probe"]
    within = re.search(r"--timeout=(\d+)s", check)
    assert within is not None
    assert asked["timeout"] < int(within[1])


@both
def test_the_image_serves_a_gated_engine_with_options_that_there_are(root: Path, file: str) -> None:
    for stage in RUN_BY_USERS[file]:
        for told in of(read(root, file), stage, "CMD"):
            program, command, *words = yaml.safe_load(told)
            if program == "sh":
                assert command == "deploy/build_engine.sh"
                continue
            assert (program, command) == ("unified-embedding", "serve")
            asked = loaded(command).make_context(command, words).params
            assert asked["engine"].is_absolute()
            # The one folder that may be written where the root may not.
            assert asked["repository"] == Path("/run/unified-embedding/model_repository")


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


def test_the_server_of_compose_may_write_nowhere_but_in_memory(compose: dict) -> None:
    server = compose["services"]["server"]
    assert server["read_only"] is True
    written = {mount.partition(":")[0] for mount in server["tmpfs"]}
    assert written == {"/tmp", "/run/unified-embedding"}
    assert all(volume.endswith(":ro") for volume in server["volumes"])


def test_tritonserver_knows_every_flag(compose: dict) -> None:
    pytest.importorskip("pytriton", reason="the extra `serve` is not installed")
    program, command, *words = compose["services"]["server"]["command"]
    assert (program, command) == ("unified-embedding", "serve")
    asked = loaded(command).make_context(command, list(words)).params
    assert str(asked["engine"]) == "/srv/unified-embedding/model_repository/embedder"
    run = subprocess.run(
        [sys.executable, "-m", "unified_embedding.serving.tritonserver", "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    known = set(re.findall(r"--[a-z0-9-]+", run.stdout + run.stderr))
    used = {word.partition("=")[0] for word in asked["flags"]}
    assert len(known) > 50
    assert used <= known


def test_the_script_passes_settings_that_the_build_step_has(root: Path, compose: dict) -> None:
    assert set(compose["services"]["engine"]["environment"]) == {"MODEL"}
    script = re.sub(r"\\\n\s*", "", (root / "deploy/build_engine.sh").read_text())
    (command,) = [line for line in script.splitlines() if "engine.py" in line and line[0] != "#"]
    help_text = subprocess.run(
        [sys.executable, "build/engine.py", "--help"],
        cwd=root, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    flags = re.findall(r"--[a-z]+", command)
    assert set(flags) == {"--repository", "--target", "--precision", "--model"}
    for flag in flags:
        assert flag in help_text, flag


def test_every_limit_is_taken_over_from_the_environment(compose: dict) -> None:
    told = compose["services"]["server"]["environment"]
    assert set(told) == {"PREPROCESS_INSTANCES", *SETTINGS}
    assert set(told.values()) == {None}
