"""SDKs that people have, against the API program in front of the real server.

`make api-clients` installs them, apart from our own environment, whose pins they would break.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drills import until
from postgresql import postgresql

pytest.importorskip("msgspec", reason="the extra `api` is not installed")

pytest.importorskip("faiss", reason="the extra `search` is not installed")

from unified_embedding.client import Embedded, EmbedderClient
from unified_embedding.index import Batch, CodeIndex
from unified_embedding.serving.local_server import free_ports

pytestmark = pytest.mark.e2e
CLIENTS = Path("out/api-clients")
COUNT = 5


@pytest.fixture(scope="module")
def python(root: Path) -> str:
    found = root / CLIENTS / "bin" / "python"
    if not found.exists():
        pytest.skip("`make api-clients` installs the SDKs")
    return str(found)


@pytest.fixture(scope="module")
def pictures(gallery: Any) -> list[str]:
    return [str(picture.path) for picture in gallery.pictures[:COUNT]]


@pytest.fixture(scope="module")
def truth(server: Any, pictures: list[str]) -> Embedded:
    with EmbedderClient(server.grpc_url) as client:
        return client.embed([Path(picture).read_bytes() for picture in pictures])


@pytest.fixture(scope="module")
def base(
    server: Any, pictures: list[str], truth: Embedded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The base URL of the program over an index of the pictures; it ends in order."""
    assert truth.embedding is not None
    assert truth.code is not None
    index = tmp_path_factory.mktemp("api") / "index"
    batch = Batch(pictures, truth.code, {"price": list(range(COUNT))}, truth.embedding)
    CodeIndex.build(index, [batch], truth.origin, server.spec.dim, embeddings=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "unified_embedding.cli", "api", "--port", str(port)]
    command += ["--server", server.grpc_url, "--index", str(index), "--page"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            until(lambda: curl(f"{address}/v1/health/ready").returncode == 0, 60, "not ready")
            yield f"{address}/v1"
        finally:
            process.terminate()
            assert process.wait(60) == 0


def curl(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["curl", "--silent", "--fail", *arguments], capture_output=True, text=True, check=False
    )


def speak(root: Path, python: str, name: str, base: str, pictures: list[str]) -> Any:
    done = subprocess.run(
        [python, str(root / "tests/api_clients/speak.py"), name, base, *pictures],
        capture_output=True,
        text=True,
        check=False,
        # No telemetry and no price list from elsewhere.
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_equal(rows: list[dict[str, Any]], truth: Embedded) -> None:
    assert truth.embedding is not None
    assert truth.code is not None
    assert len(rows) == len(truth)
    for row, vector, code in zip(rows, truth.embedding, truth.code, strict=True):
        assert np.array_equal(np.float32(row["embedding"]), vector)
        if "code" in row:
            assert base64.b64decode(row["code"]) == code.tobytes()


@pytest.mark.parametrize(
    "name", ["openai_sync", "openai_async", "litellm_embedding", "langchain", "raw_httpx"]
)
def test_an_sdk_reads_the_vectors_and_codes_of_the_server(
    root: Path, python: str, base: str, pictures: list[str], truth: Embedded, name: str
) -> None:
    assert_equal(speak(root, python, name, base, pictures), truth)


def test_a_batch_of_200_in_one_call(
    root: Path, python: str, base: str, pictures: list[str], truth: Embedded
) -> None:
    rows = speak(root, python, "openai_batch", base, pictures)
    assert len(rows) == 200
    for start in range(0, 200, COUNT):
        assert_equal(rows[start : start + COUNT], truth)


def test_the_sdk_raises_what_it_has_an_error_for(
    root: Path, python: str, base: str, pictures: list[str]
) -> None:
    assert speak(root, python, "openai_errors", base, pictures) == {
        "text": [400, "not_an_image", "BadRequestError"],
        "address": [400, "url_not_fetched", "BadRequestError"],
        "version": [404, "model_not_found", "NotFoundError"],
        "model": [404, "model_not_found", "NotFoundError"],
        "width": [400, "invalid_value", "BadRequestError"],
    }


def test_node(root: Path, python: str, base: str, pictures: list[str], truth: Embedded) -> None:
    packages = root / CLIENTS / "node_modules" / "openai"
    node = shutil.which("node")
    if node is None or not packages.is_dir():
        pytest.skip("`make api-clients` installs the SDKs")
    script = str(root / "tests/api_clients/speak.mjs")
    done = subprocess.run(
        [node, script, base, str(root / CLIENTS), *pictures],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert_equal(said["rows"], truth)
    assert said["codes"] == [row["code"] for row in said["rows"]]
    assert said["refused"] == [400, "not_an_image"]


def test_qdrant_orders_by_the_bits(
    root: Path, python: str, base: str, pictures: list[str], truth: Embedded
) -> None:
    assert truth.embedding is not None
    said = speak(root, python, "qdrant", base, pictures)
    packed = np.packbits(truth.embedding > 0, axis=1)
    assert [base64.b64decode(code) for code in said["codes"]] == [row.tobytes() for row in packed]
    bits = np.unpackbits(packed, axis=1).astype(int)
    for row, hits in zip(bits, said["found"], strict=True):
        right = sorted(((bits - row) != 0).sum(axis=1).tolist())
        assert [distance for _, distance in hits] == right
        for number, distance in hits:
            assert distance == int((bits[number] != row).sum())


# The Hamming distance of two values of type bit, by PostgreSQL's own functions and by pgvector's.
DISTANCES = {"plain": "bit_count(a.code # b.code)", "pgvector": "a.code <~> b.code"}


@pytest.mark.parametrize("kind", DISTANCES)
def test_postgresql_finds_by_the_bits_of_ubinary(
    base: str, pictures: list[str], truth: Embedded, kind: str
) -> None:
    assert truth.embedding is not None
    inputs = [
        "data:image/jpeg;base64," + base64.b64encode(Path(picture).read_bytes()).decode()
        for picture in pictures
    ]
    body = json.dumps({"input": inputs, "embedding_type": "ubinary"})
    done = curl("-H", "Content-Type: application/json", "--data-binary", body, f"{base}/embeddings")
    codes = [row["code"] for row in json.loads(done.stdout)["data"]]
    bits = (truth.embedding > 0).astype(int)
    width = bits.shape[1]
    with postgresql(kind) as server:
        if kind == "pgvector":
            server.query("create extension vector")
        server.query(f"create table codes (id int, code bit({width}))")
        for number, code in enumerate(codes):
            hexadecimal = base64.b64decode(code).hex()
            server.query(f"insert into codes values ({number}, 'x{hexadecimal}'::bit({width}))")
        stored = [row[0] for row in server.query("select code from codes order by id")]
        assert stored == ["".join(map(str, row)) for row in bits]
        found = server.query(
            f"select b.id, ({DISTANCES[kind]})::int from codes a, codes b where a.id = 0 "
            "order by 2, 1"
        )
    distances = (bits != bits[0]).sum(axis=1)
    right = sorted((int(distance), number) for number, distance in enumerate(distances))
    assert found == [[str(number), str(distance)] for distance, number in right]


def test_curl_as_in_the_readme(base: str, pictures: list[str], truth: Embedded) -> None:
    assert truth.embedding is not None
    done = curl(
        "--data-binary", f"@{pictures[0]}", "-H", "Content-Type: image/jpeg", f"{base}/embeddings"
    )
    assert done.returncode == 0
    (row,) = json.loads(done.stdout)["data"]
    assert np.array_equal(np.float32(row["embedding"]), truth.embedding[0])


def test_curl_searches_as_in_the_documents(base: str, pictures: list[str], truth: Embedded) -> None:
    assert truth.code is not None
    query = {"id": pictures[0], "k": 3, "where": "price is not None"}
    body = ["-H", "Content-Type: application/json", "-d", json.dumps(query)]
    done = curl(*body, f"{base}/search")
    bits = np.unpackbits(truth.code, axis=1).astype(int)
    right = sorted(((bits != bits[0]).sum(axis=1)[1:]).tolist())[:3]
    assert [hit["distance"] for hit in json.loads(done.stdout)["data"]] == right


def test_schemathesis_finds_no_500(root: Path, python: str, base: str) -> None:
    """A minute of it here; RUN_SLOW=1 makes more than 2,000 calls."""
    address = base.removesuffix("/v1")
    program = str(Path(python).with_name("schemathesis"))
    examples = "2500" if os.environ.get("RUN_SLOW") == "1" else "200"
    run = [program, "run", f"{address}/openapi.json", "--url", address, "--seed", "1"]
    run += ["--checks", "not_a_server_error", "--max-examples", examples]
    done = subprocess.run(
        [*run, "--phases", "examples,coverage,fuzzing"], capture_output=True, text=True, check=False
    )
    # A caller that waits a millisecond rightly gets 504.
    assert "generated" in done.stdout, done.stdout + done.stderr
    assert "[500]" not in done.stdout, done.stdout[-4000:]
