"""The wheel, installed outside the checkout, and its program on the session's server."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="the extra `dev` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.client import EmbedderClient, Retry
from unified_embedding.gallery import Gallery
from unified_embedding.serving.local_server import child, free_ports

pytestmark = pytest.mark.e2e

# What each command may not import: the extras of the others.
FOREIGN = {
    "embed": ("faiss", "ray", "locust", "uvicorn", "openvino", "onnx"),
    "backfill": ("faiss", "ray", "locust", "uvicorn", "openvino", "onnx"),
    "index": ("ray", "locust", "uvicorn", "openvino", "onnx"),
    "search": ("ray", "locust", "uvicorn", "openvino", "onnx"),
    "page": ("ray", "locust", "openvino", "onnx"),
    "status": ("faiss", "ray", "locust", "uvicorn", "openvino", "onnx", "pyarrow"),
    "serve": ("faiss", "ray", "locust", "uvicorn", "onnx", "pyarrow"),
    "api": ("faiss", "ray", "locust", "openvino", "onnx"),
    "gateway": ("faiss", "ray", "locust", "uvicorn", "openvino", "onnx", "pyarrow"),
    "load": ("faiss", "ray", "uvicorn", "openvino", "onnx"),
}
BLOCKED = """
import sys
name, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))
sys.argv = ["unified-embedding", *name.split()]
from unified_embedding.cli.main import program
program()
"""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment that holds the wheel, and sees what is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # A path in a .pth file is searched after the environment's own, and its .pth files are not
    # read: the package comes from the wheel.
    beside = folder / "lib" / version / "site-packages" / "beside.pth"
    beside.write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def program(installed: Path, tmp_path: Path) -> Any:
    """`unified-embedding` in an empty folder."""

    def run(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed / "unified-embedding", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=outside(COLUMNS="200", **environment),
        )

    return run


def outside(**more: str) -> dict[str, str]:
    """This process's environment without what leads to the checkout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, **more}


def test_the_wheel_holds_the_static_models_and_no_engine(root: Path, wheel: Path) -> None:
    inside = "unified_embedding/serving/model_repository/"
    with zipfile.ZipFile(wheel) as archive:
        found = {
            name.removeprefix(inside): archive.read(name)
            for name in archive.namelist()
            if name.startswith(inside)
        }
    command = ["git", "ls-files", "model_repository"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    wanted = [Path(line) for line in listed.stdout.splitlines()]
    assert found == {
        str(path.relative_to("model_repository")): (root / path).read_bytes() for path in wanted
    }


def test_the_program_lists_its_commands(program: Any, installed: Path, tmp_path: Path) -> None:
    run = program("--help")
    assert run.returncode == 0, run.stderr
    for command in FOREIGN:
        assert f"│ {command} " in run.stdout
    assert "--install-completion" in run.stdout
    code = "import unified_embedding; print(unified_embedding.__file__)"
    place = subprocess.check_output(
        [installed / "python", "-c", code], text=True, cwd=tmp_path, env=outside()
    )
    assert Path(place.strip()).is_relative_to(installed.parent)


@pytest.mark.parametrize("command", FOREIGN)
def test_help_needs_the_extra_of_its_command_only(
    installed: Path, tmp_path: Path, command: str
) -> None:
    def run(*blocked: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed / "python", "-c", BLOCKED, f"{command} --help", *blocked],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=outside(),
        )

    shown = run(*FOREIGN[command])
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout.lower()


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("status", "tritonclient", "client"),
        ("search", "faiss", "search"),
        ("load", "locust", "load"),
    ],
)
def test_a_command_names_the_extra_it_lacks(
    installed: Path, tmp_path: Path, command: str, module: str, extra: str
) -> None:
    run = subprocess.run(
        [installed / "python", "-c", MISSING, f"{command} --help", module],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=outside(),
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert f"unified-embedding {command}: the extra `{extra}` is not installed" in run.stderr
    assert f"pip install 'unified-embedding[{extra}]'" in run.stderr


MISSING = BLOCKED.replace(
    "sys.modules.update(dict.fromkeys(blocked))",
    """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
""",
)


def copied(gallery: Gallery, count: int, folder: Path) -> Path:
    folder.mkdir()
    for picture in gallery.pictures[:count]:
        shutil.copy(picture.path, folder)
    return folder


def test_a_picture_is_embedded_indexed_and_found(
    program: Any, server: Any, gallery: Gallery, tmp_path: Path
) -> None:
    pictures = copied(gallery, 20, tmp_path / "pictures")
    at = ("--url", server.grpc_url)

    status = program("status", *at, "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["version"] == server.spec.version

    embed = program("embed", "pictures", *at, "--out", "e.jsonl")
    assert embed.returncode == 0, embed.stderr
    assert len((tmp_path / "e.jsonl").read_text().splitlines()) == 20

    backfill = program("backfill", "pictures", *at, "--out", "corpus")
    assert backfill.returncode == 0, backfill.stderr
    index = program("index", "build", "corpus", "--out", "index")
    assert index.returncode == 0, index.stderr
    asked = sorted(pictures.iterdir())[3]
    search = program("search", asked, *at, "--index", "index", "--json")
    assert search.returncode == 0, search.stderr
    first = json.loads(search.stdout)["hits"][0]
    assert (first["id"], first["distance"]) == (f"pictures/{asked.name}", 0)

    missing = program("search", "nothere.jpg", *at, "--index", "index")
    assert missing.returncode == 2
    assert "'nothere.jpg' cannot be read" in missing.stderr
    http = program("status", "--url", server.http_url.removeprefix("http://"))
    assert http.returncode == 1
    assert "give its gRPC port, 8001 by default" in http.stderr


def test_serve_needs_no_checkout(
    installed: Path, repository: Path, gallery: Gallery, image: list[bytes], right: Any, tmp_path
) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(repository / "embedder", engine)
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    command = [str(installed / "unified-embedding"), "serve", "--engine", str(engine), "--"]
    command += [f"--{name}-port={port}" for name, port in ports.items()]
    place = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with (
        (tmp_path / "log").open("w") as log,
        child(command, stdout=log, stderr=log, cwd=tmp_path, env=outside(**place)) as served,
    ):
        url = f"127.0.0.1:{ports['grpc']}"
        with EmbedderClient(url, timeout=600, retry=Retry(contact=600)) as client:
            assert (client.embed(image).code == right).all()
        served.terminate()
        assert served.wait(600) == 0
    assert "not in order" not in (tmp_path / "log").read_text()


def test_serve_refuses_an_engine_that_is_not_what_was_gated(
    program: Any, repository: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(repository / "embedder", engine)
    config = engine / "config.pbtxt"
    config.write_text(config.read_text() + "# changed\n")
    changed = program("serve", "--engine", engine)
    assert changed.returncode == 1
    assert "config.pbtxt is not the file that was gated" in changed.stderr
    (engine / "1" / "engine.json").unlink()
    assert "holds no gated engine" in program("serve", "--engine", engine).stderr
    assert "which engine?" in program("serve").stderr
    assert "needs --gallery" in program("serve", "--model", tmp_path).stderr


def test_serve_gates_an_embedder_on_pictures_that_the_user_names(
    root: Path, program: Any, gallery: Gallery, tmp_path: Path
) -> None:
    pictures = copied(gallery, 40, tmp_path / "pictures")
    model = root / "models" / "unified-embedder-lite0"
    run = program(
        *("serve", "--model", model, "--gallery", pictures, "--", "--no-such-flag"),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    # Triton names the flag, and ends: what counts here is what it was started with.
    assert "gates over 40 pictures" in run.stdout
    (record,) = (tmp_path / "cache").rglob("engine.json")
    figures = json.loads(record.read_text())["gates"]["figures"]
    assert (figures["images"], figures["queries"], figures["recall"]) == (40, 0, {})
    assert figures["neighbours"] > 0.5
    assert "no-such-flag" in run.stdout + run.stderr
    assert run.returncode != 0
