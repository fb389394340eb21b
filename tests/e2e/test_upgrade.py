"""docs/upgrade.md typed in its order while people search: no mixed answer, no failed search.

Two embedders of equal width stand in one real Triton, so that only versions tell their codes apart.
Every answer is compared with brute force over codes that a plain caller got from the embedder of
the version that the answer states. In the slow form corpora lie in an object store, every command
is killed in the middle and then repeated, and so are Triton and the API.
"""

import base64
import csv
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `build` is not installed")
pytest.importorskip("faiss", reason="the extra `search` is not installed")
pytest.importorskip("msgspec", reason="the extra `api` is not installed")

import forked_programs
import tiny_embedder as tiny
from drills import PATIENCE, SERVED_S, end, until
from object_store import object_store
from programs import run_program
from triton_calls import infer

from unified_embedding import EmbedderSpec, load_pixels, onnx_file, pack
from unified_embedding.engine.gates.reference import reference_runner
from unified_embedding.errors import SetupError
from unified_embedding.gallery import CATALOGUE, Gallery
from unified_embedding.serving.local_server import LocalServer, free_ports, start
from unified_embedding.serving.repository import assemble
from unified_embedding.serving.tritonserver import resolve

pytestmark = pytest.mark.e2e

PREFIXES = {"blue": "", "green": "v2-"}
# Blue looks at a fiftieth of the pixels and finds less, so that green passes the gate.
MODELS = {"blue": (1, 0.02), "green": (5, 1.0)}
DIM = 64
K = 5
CALLERS = 3


@dataclass(frozen=True)
class Served:
    """Two embedders in one server, and their folders."""

    server: LocalServer
    models: dict[str, Path]


@pytest.fixture(scope="module")
def served(
    root: Path, few_products: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    try:
        resolve([], os.environ)
    except SetupError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("upgrade")
    assemble(root / "model_repository", folder / "model_repository")
    models = {}
    for colour, (seed, share) in MODELS.items():
        network = tiny.projecting_embedder(seed, share, DIM)
        models[colour] = folder / colour
        models[colour].mkdir()
        onnx_file.save(network, tiny.spec_of(network, dim=DIM), models[colour])
        options = ["--model", models[colour], "--gallery", few_products, "--precision", "fp32"]
        place = ["--repository", folder / "model_repository", "--prefix", PREFIXES[colour]]
        built = run_program(root, "build/engine.py", *map(str, [*options, *place]))
        assert built.returncode == 0, built.stdout + built.stderr
    server = start(folder / "model_repository", folder / "log")
    yield Served(server, models)
    end(server)


@pytest.fixture(scope="module")
def pictures(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo gallery of small pictures whose shots are crops that pixels alone recognise."""
    folder = tmp_path_factory.mktemp("pictures") / "demo"
    (folder / "catalogue").mkdir(parents=True)
    (folder / "shots").mkdir()
    rows = []
    for picture in Gallery.load(root / "demo").role(CATALOGUE):
        name = picture.path.stem
        image = Image.open(picture.path).convert("RGB")
        image.thumbnail((64, 64))
        image.save(folder / "catalogue" / f"{name}.png")
        width, height = image.size
        shot = image.crop((width // 12, height // 16, width, height))
        shot.save(folder / "shots" / f"{name}-1.jpg", quality=40)
        rows.append([f"catalogue/{name}.png", picture.product, "catalogue"])
        rows.append([f"shots/{name}-1.jpg", picture.product, "shot"])
    with (folder / "gallery.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "product", "role"])
        writer.writerows(rows)
    return folder


@dataclass
class Truth:
    """Codes of every picture by every version, as a caller without any code of ours got them.

    Attributes:
        versions: colour -> version.
        codes: version -> id -> code.
        queries: pictures to search with, name -> bytes.
        asked: version -> name of the query -> code.
        old: ids of the first corpus.
        new: ids of the pictures that come later.
    """

    versions: dict[str, str]
    codes: dict[str, dict[str, np.ndarray]]
    queries: dict[str, bytes]
    asked: dict[str, dict[str, np.ndarray]]
    old: set[str]
    new: set[str]

    def distances(self, query: str, of: str, against: str) -> dict[str, int]:
        """Bits between a query by version `of` and every picture by version `against`."""
        code = self.asked[of][query]
        return {
            name: int(np.unpackbits(code ^ other).sum())
            for name, other in self.codes[against].items()
        }

    def judge(self, query: str, version: str, hits: Sequence[tuple[str, int]]) -> str:
        """What is wrong with an answer, or ""."""
        if version not in self.codes:
            return f"states version {version}"
        found = self.distances(query, version, version)
        if any(found[name] != distance for name, distance in hits):
            return "mixed: distances of no code of the stated version"
        for rows in (self.old, self.old | self.new):
            nearest = sorted(distance for name, distance in found.items() if name in rows)[:K]
            if nearest == [distance for _, distance in hits]:
                return ""
        return "not the nearest"


@pytest.fixture(scope="module")
def truth(served: Served, pictures: Path) -> Truth:
    old = {f"demo/catalogue/{path.name}": path for path in (pictures / "catalogue").iterdir()}
    shots = {f"demo/shots/{path.name}": path for path in (pictures / "shots").iterdir()}
    new = {name: path for name, path in shots.items() if "/kat" in name}
    queries = {name: path.read_bytes() for name, path in sorted(shots.items())[::10]}
    files = {name: path.read_bytes() for name, path in (old | new).items()}
    truth = Truth({}, {}, queries, {}, set(old), set(new))
    for colour, prefix in PREFIXES.items():
        codes, version = embedded(served.server.grpc_url, prefix, list(files.values()))
        asked, _ = embedded(served.server.grpc_url, prefix, list(queries.values()))
        spec = EmbedderSpec.load(served.models[colour])
        assert version == spec.version
        # The server runs the weights of that folder.
        pixels = np.stack([load_pixels(data, spec.preprocessing) for data in queries.values()])
        exact = pack(reference_runner(served.models[colour])(pixels))
        assert np.unpackbits(exact ^ asked, axis=1).mean() < 0.01
        truth.versions[colour] = version
        truth.codes[version] = dict(zip(files, codes, strict=True))
        truth.asked[version] = dict(zip(queries, asked, strict=True))
    blue, green = truth.versions.values()
    for query in queries:  # An answer of the other version, or a mixed one, would be seen.
        tables = [
            truth.distances(query, *pair)
            for pair in ((blue, blue), (green, green), (blue, green), (green, blue))
        ]
        assert len({tuple(sorted(table.values())[:K]) for table in tables}) > 1
        assert all(
            sum(left[name] != right[name] for name in left) > 0.8 * len(left)
            for number, left in enumerate(tables)
            for right in tables[:number]
        )
    return truth


def embedded(url: str, prefix: str, images: Sequence[bytes]) -> tuple[np.ndarray, str]:
    codes, version = [], ""
    for first in range(0, len(images), 16):
        rows = np.array([[image] for image in images[first : first + 16]], dtype=object)
        name = f"{prefix}unified_embedding"
        answer = infer(url, name, "image", rows, ("code", "version"))
        codes.append(answer["code"])
        version = answer["version"][0, 0].decode().split()[0]
    return np.concatenate(codes), version


@dataclass
class Searchers:
    """People who search through the HTTP API without a pause, and judge what they get.

    Attributes:
        answers: version -> how many.
        wrong: what was wrong, with an example.
        told_to_repeat: answers that said when to ask again, which SDKs do.
    """

    port: int
    truth: Truth
    answers: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)
    told_to_repeat: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, query: str) -> tuple[str, str]:
        """The version of an answer, and what is wrong with it; repeated while told to."""
        data = base64.b64encode(self.truth.queries[query]).decode()
        body = json.dumps({"image": f"data:image/jpeg;base64,{data}", "k": K})
        ends = time.monotonic() + PATIENCE * SERVED_S
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/v1/search", body, headers)
                answer = connection.getresponse()
                said = json.loads(answer.read())
            finally:
                connection.close()
            if answer.status == 200:
                hits = [(hit["id"], hit["distance"]) for hit in said["data"]]
                return said["version"], self.truth.judge(query, said["version"], hits)
            again = answer.headers.get("retry-after")
            if again is None or time.monotonic() > ends:
                return "", f"{answer.status}: {said}"
            self.told_to_repeat += 1
            time.sleep(float(again))

    def _work(self, offset: int) -> None:
        names = list(self.truth.queries)
        while not self._stop.is_set():
            offset += 1
            try:
                version, wrong = self.ask(names[offset % len(names)])
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                version, wrong = "", repr(error)
            self.answers[version] += 1
            if wrong:
                self.wrong.setdefault(wrong[:60], wrong)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._work, args=(n,)) for n in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(PATIENCE * SERVED_S)
            assert not any(thread.is_alive() for thread in threads)

    def more(self, version: str, count: int = 5) -> None:
        """Wait for further answers of a version."""
        wanted = self.answers[version] + count
        until(lambda: self.answers[version] >= wanted or self.wrong, SERVED_S, "no more answers")


@contextmanager
def api(root: Path, folder: Path, url: str) -> Iterator[int]:
    """The API as the page starts it, at a free port."""
    (port,) = free_ports(1)
    (line,) = [line for line in commands(root) if "unified-embedding api " in line]
    words = shlex.split(line.replace("127.0.0.1:8001", url))[1:]
    command = [sys.executable, "-m", "unified_embedding.cli", *words, "--port", str(port)]
    path = {"PYTHONPATH": str(root)}
    with (folder / "api.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**os.environ, **path}
        )
        try:
            until(lambda: listens(port), 30, f"no API, see {folder / 'api.log'}")
            yield port
        finally:
            process.terminate()
            assert process.wait(60) == 0


def listens(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/v1/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def page(root: Path) -> str:
    return (root / "docs" / "upgrade.md").read_text()


def commands(root: Path) -> list[str]:
    """The commands of the page in their order, and its Python."""
    found = re.findall(r"^    (\S[^\n]*)$|^```python\n(.*?)^```", page(root), re.M | re.S)
    return [line or block for line, block in found if not line.startswith("out/")]


def typed(root: Path) -> list[str]:
    """Those that the test types; the others build and start what its fixtures do."""
    elsewhere = ("make engine ", "unified-embedding api ")
    return [line for line in commands(root) if not line.startswith(elsewhere)]


def moves(words: list[str], remote: bool) -> list[tuple[str, str, int]]:
    """Where in the middle a command is killed."""
    renamed = "os.rename"
    match words:
        case ["backfill", *_] if remote:  # Plan, what was passed over, header: then a shard.
            return [("open", os.path.basename(os.environ.get("TMPDIR", "/tmp")), 4)]
        case ["backfill", *_]:
            return [(renamed, "00000.parquet", 1)]
        case ["index", "add", *_, "out/live/blue"]:  # Announced; written and not yet confirmed.
            return [(renamed, "header.json", 1), (renamed, "active.json", 2)]
        case ["index", "build" | "add", *_]:
            return [(renamed, "header.json", 1)]
        case ["index", "activate", *_]:
            return [(renamed, "active.json", 1)]
        case ["index", "gate", *_]:
            # Blue has been searched with it, green is about to be.
            return [("open", "blendswap-cc-by-arbolito-1.jpg", 2)]
        case ["index", "remove", *_]:
            return [(renamed, ".removed-blue", 1), ("shutil.rmtree", ".removed-blue", 1)]
    return []


@dataclass
class Drill:
    """The page's commands, run one after another in a folder like a clone."""

    root: Path
    folder: Path
    url: str
    programs: forked_programs.Programs
    where: Callable[[str], str]
    remote: bool
    searchers: Searchers | None = None
    killed: int = 0

    def type(self, line: str, kill: bool) -> None:
        if not line.startswith("unified-embedding "):
            run_program(self.root, "-c", f"import os; os.chdir({str(self.folder)!r})\n{line}")
            return
        words = shlex.split(self.where(line.replace("127.0.0.1:8001", self.url)))[1:]
        for move in moves(words, self.remote) if kill else ():
            done = self.programs.run(words, move)
            assert done.status == -signal.SIGKILL, f"{line}\n{done.output}"
            self.killed += 1
            self.still_right()
        done = self.programs.run(words)
        assert done.status == 0, f"{line}\n{done.output}"
        self.still_right()

    def still_right(self) -> None:
        if self.searchers is not None:
            assert not self.searchers.wrong, self.searchers.wrong


def follow(
    drill: Drill,
    truth: Truth,
    kill: Callable[[str], bool],
    last: Callable[[Searchers], None] = lambda searchers: None,
) -> Searchers:
    """Type the page from top to bottom; people search from the first activation on."""
    blue, green = truth.versions["blue"], truth.versions["green"]
    lines = typed(drill.root)
    first = next(n for n, line in enumerate(lines) if "index activate" in line)
    for line in lines[: first + 1]:
        drill.type(line, kill(line))
    with api(drill.root, drill.folder, drill.url) as port:
        searchers = drill.searchers = Searchers(port, truth)
        with searchers.at_work():
            searchers.more(blue)
            now = blue
            for line in lines[first + 1 :]:
                drill.type(line, kill(line))
                if "index activate" in line:
                    now = green if line.endswith("green") else blue
                searchers.more(now)
            refused = drill.programs.run(["index", "remove", "out/live/green"])
            assert refused.status == 2
            assert "is active and stays" in refused.output
            program_follows(drill, truth)
            last(searchers)
    return searchers


def program_follows(drill: Drill, truth: Truth) -> None:
    """`unified-embedding search` finds what is active too."""
    version = truth.versions["green"]
    for query in list(truth.queries)[:2]:
        words = ["search", query, "--index", "out/live", "--json", "--k", str(K)]
        words += ["--url", drill.url, "--url", f"{drill.url}/v2-unified_embedding"]
        done = drill.programs.run(words)
        assert done.status == 0, done.output
        hits = [(hit["id"], hit["distance"]) for hit in json.loads(done.output)["hits"]]
        assert truth.judge(query, version, hits) == ""


@contextmanager
def drilling(
    root: Path, pictures: Path, served: Served, folder: Path, store: str = ""
) -> Iterator[Drill]:
    """A folder that looks like a clone; with a `store`, corpora lie there."""
    shutil.copytree(pictures, folder / "demo")
    (folder / "out").mkdir()

    def where(line: str) -> str:
        place = rf"'s3://shop/\1{store}'" if store else r"out/\1"
        return re.sub(r"\bout/(corpus-blue|corpus-green|newer)\b", place, line)

    url = served.server.grpc_url
    environment = {"UNIFIED_EMBEDDING_URL": url, "PYTHONPATH": str(root)}
    with forked_programs.running(folder, folder / "log", **environment) as programs:
        yield Drill(root, folder, url, programs, where, bool(store))


def check(searchers: Searchers, truth: Truth) -> None:
    assert searchers.wrong == {}
    assert set(searchers.answers) == set(truth.versions.values())
    assert min(searchers.answers.values()) > 20


def test_the_page_is_followed_while_people_search(
    root: Path, pictures: Path, served: Served, truth: Truth, tmp_path: Path
) -> None:
    with drilling(root, pictures, served, tmp_path) as drill:
        searchers = follow(
            drill,
            truth,
            lambda line: "activate" in line or "add out/newer --index out/live/blue" in line,
        )
    check(searchers, truth)
    assert searchers.told_to_repeat == 0
    assert drill.killed == 6


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("RUN_SLOW") != "1", reason="takes minutes: RUN_SLOW=1")
def test_every_command_is_killed_in_the_middle_and_repeated_over_an_object_store(
    root: Path, pictures: Path, served: Served, truth: Truth, tmp_path: Path
) -> None:
    server, green = served.server, truth.versions["green"]

    def lose_triton(searchers: Searchers) -> None:
        """Its launcher starts it again; meanwhile the roles change twice more."""
        build = ["index", "build", drill.where("out/corpus-blue"), "--out", "out/live/blue"]
        assert drill.programs.run([word.strip("'") for word in build]).status == 0
        os.kill(server.server_pid, signal.SIGKILL)
        for colour in ("blue", "green"):
            drill.type(f"unified-embedding index activate out/live/{colour}", kill=True)
        searchers.more(green, 10)

    with (
        object_store() as (options, _),
        drilling(root, pictures, served, tmp_path, options) as drill,
    ):
        searchers = follow(drill, truth, lambda line: True, lose_triton)
        check(searchers, truth)
        assert drill.killed == 18
        # A process that is started anew searches what is active.
        with api(root, drill.folder, drill.url) as port:
            for query in truth.queries:
                assert Searchers(port, truth).ask(query) == (green, "")
