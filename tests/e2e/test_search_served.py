"""From pictures to hits through the real server: the index programs, search.py and the page."""

import base64
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from kserve_peer import DIM, ENGINE, VERSION, Peer, codes, serving

from unified_embedding import Box
from unified_embedding.client import EmbedderClient
from unified_embedding.gallery import CATALOGUE, SHOT, Gallery, relevance
from unified_embedding.retrieval import recall_at

pytestmark = pytest.mark.e2e
faiss = pytest.importorskip("faiss", reason="the extra `search` is not installed")
pytest.importorskip("starlette", reason="the extra `search` is not installed")
from unified_embedding.index import Batch, CodeIndex, Origin  # noqa: E402
from unified_embedding.index.following import activate  # noqa: E402
from unified_embedding.search.pictures import Pictures  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
SCREENSHOTS = os.environ.get("SCREENSHOTS") == "1"  # write them into docs/


@pytest.fixture(scope="module")
def index(server: Any, gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the demo catalogue, embeddings included."""
    pictures = gallery.role(CATALOGUE)
    with EmbedderClient(server.grpc_url) as client:
        answer = client.embed([picture.path.read_bytes() for picture in pictures])
    assert answer.code is not None
    batch = Batch(
        [picture.product for picture in pictures],
        answer.code,
        {
            "source": [str(picture.path) for picture in pictures],
            "metadata": [json.dumps({"name": picture.name}) for picture in pictures],
        },
        answer.embedding,
    )
    folder = tmp_path_factory.mktemp("search") / "index"
    origin = Origin(answer.version, answer.engine)
    roots = [str(pictures[0].path.parent)]
    CodeIndex.build(folder, [batch], origin, server.spec.dim, embeddings=True, roots=roots)
    return folder


def search(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(root / "clients" / "search.py"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_search_finds_the_right_product_as_often_as_the_table_says(
    root: Path, server: Any, gallery: Gallery, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unified_embedding.cli.search import Order, search

    opened, unread = CodeIndex.open(index), Pictures(())
    shots, catalogue = gallery.role(SHOT), gallery.role(CATALOGUE)
    with EmbedderClient(server.grpc_url) as client:
        first = [
            search(opened, client, shot.path.read_bytes(), None, 1, Order.code, False, unread)
            .hits[0]
            .id
            for shot in shots
        ]
        asked = client.embed([shot.path.read_bytes() for shot in shots], outputs=("code",))
    right = np.array([name == shot.product for name, shot in zip(first, shots, strict=True)])
    # The demo table's figure for codes, ties shared; the program breaks ties by insertion order.
    stored = np.stack([opened.fetch(picture.product).code for picture in catalogue])
    bits = np.unpackbits(asked.code, axis=1).astype(int)  # type: ignore[arg-type]
    distances = (bits[:, None] != np.unpackbits(stored, axis=1)[None]).sum(axis=2)
    table = recall_at(-distances.astype(float), relevance(shots, catalogue), 1)
    tied = (table > 0) & (table < 1)
    assert right.sum() >= table.sum() - tied.sum()
    assert right.mean() >= 0.6


def test_search_prints_hits_and_draws_a_sheet(
    root: Path, server: Any, gallery: Gallery, index: Path, tmp_path: Path
) -> None:
    shot = gallery.role(SHOT)[0]
    sheet = tmp_path / "sheet.png"
    options = ["--index", str(index), "--url", server.grpc_url, "--k", "3"]
    run = search(root, str(shot.path), *options, "--sheet", str(sheet))
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    # A line for each hit, whatever the width, with its id whole at the end.
    head, *lines = run.stdout.splitlines()
    assert head.split() == ["#", "bits", "name", "id"]
    hits = [line for line in lines if re.match(r" +\d+ +\d+ ", line)]
    assert [int(line.split()[0]) for line in hits] == [1, 2, 3]
    assert any(line.endswith(f"  {shot.product}") for line in hits)
    assert sheet.read_bytes()[:4] == b"\x89PNG"
    run = search(
        root,
        str(shot.path),
        *options,
        "--json",
        "--crop",
        "0.1,0.1,0.9,0.9",
        "--order",
        "embedding",
        "--where",
        "name is not None and name != 'Radio'",
    )
    hits = json.loads(run.stdout)["hits"]
    assert len(hits) == 3
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    assert set(hits[0]["metadata"]) == {"source", "name"}


def test_search_says_what_is_wrong(root: Path, server: Any, index: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    here, there = ["--index", str(index)], ["--url", server.grpc_url]
    for arguments, sentence in (
        ([str(text), *here, *there], "not an image"),
        ([str(text), *here, "--url", "127.0.0.1:1"], "is unavailable"),
        ([str(text), "--index", str(tmp_path / "no"), *there], "clients/index.py build"),
        ([str(text), *here, *there, "--crop", "1,1,0,0"], "is not a box"),
        ([str(text), *here, *there, "--where", "prise < 20"], "there are name, source"),
        ([str(tmp_path / "absent.jpg"), *here, *there], "absent.jpg"),
    ):
        run = search(root, *arguments)
        assert run.returncode == 2
        assert sentence in run.stderr


@contextmanager
def page(root: Path, index: Path, url: str, *options: str) -> Iterator[str]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, str(root / "clients" / "page.py"), "--index", str(index)]
    program += ["--url", url, "--port", str(port), *options]
    run = subprocess.Popen(program, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert run.poll() is None, run.stderr.read() if run.stderr else b""
            try:
                urllib.request.urlopen(f"{address}/style.css", timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
    finally:
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=30)


@pytest.fixture(scope="module")
def address(root: Path, server: Any, index: Path) -> Iterator[str]:
    """The page over the real server."""
    with page(root, index, server.grpc_url) as address:
        yield address


def post(address: str, path: str, data: bytes, kind: str = "application/octet-stream") -> Any:
    """Status and JSON."""
    request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": kind})
    return answered(request)


def get(address: str, path: str) -> Any:
    return answered(f"{address}{path}")


def answered(request: Any) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def found(address: str, data: bytes, crop: str = "", **wanted: Any) -> dict[str, Any]:
    """What the page asks for a photo: its embedding, then the index's answer."""
    query = f"?encoding_format=base64{crop and '&crop=' + crop}"
    status, answer = post(address, f"/v1/embeddings{query}", data)
    assert status == 200, answer
    query = {name: answer[name] for name in ("version", "engine")}
    query["embedding"] = answer["data"][0]["embedding"]
    return sought(address, **query, **wanted)


def sought(address: str, **wanted: Any) -> dict[str, Any]:
    body = json.dumps({"k": 12, "group": True, **wanted}).encode()
    status, answer = post(address, "/v1/search", body, "application/json")
    assert status == 200, answer
    return dict(answer)


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["data"]]


def test_the_routes_of_the_page_answer_like_the_index(
    address: str, server: Any, gallery: Gallery, index: Path
) -> None:
    data = gallery.role(SHOT)[3].path.read_bytes()
    opened = CodeIndex.open(index)
    with EmbedderClient(server.grpc_url) as client:
        asked = client.embed([data], crops=Box(0.1, 0.1, 0.9, 0.9))
    assert asked.code is not None
    assert asked.embedding is not None
    origin = opened.header.origin
    crop = "0.1,0.1,0.9,0.9"
    by_code = opened.search(asked.code, origin, k=5)
    answer = found(address, data, crop, k=5)
    assert base64.b64decode(answer["query"]["code"]) == asked.code.tobytes()
    assert ids(answer) == by_code.ids(0)
    assert [hit["distance"] for hit in answer["data"]] == by_code.distances[0].tolist()
    assert answer["chance"] == opened.chance()
    again = opened.search(asked.code, origin, k=5, embedding=asked.embedding, rerank="asymmetric")
    assert ids(found(address, data, crop, k=5, order="asymmetric")) == again.ids(0)
    whole = opened.search_embeddings(asked.embedding, origin, k=5)
    assert ids(found(address, data, crop, k=5, order="float")) == whole.ids(0)
    # A row is like itself; that is no result.
    row = opened.fetch(by_code.ids(0)[0])
    nearest = opened.search(row.code[None], origin, k=4).ids(0)
    assert ids(sought(address, id=row.id, k=3)) == nearest[1:]
    where = "name != 'Christmas tree'"
    other = found(address, gallery.role(SHOT)[0].path.read_bytes(), k=100, where=where)
    left = {picture.product for picture in gallery.role(CATALOGUE) if "tree" not in picture.name}
    assert set(ids(other)) <= left


def test_unknown_rows_are_404_and_headers_are_strict(address: str) -> None:
    assert post(address, "/v1/search", b'{"id": "nothing"}', "application/json")[0] == 404
    assert get(address, "/picture?id=../../etc/passwd")[0] == 404
    with urllib.request.urlopen(address) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        html = answer.read().decode()
    assert not re.search(r"(src|href)=\"(https?:)?//", html)


def test_users_do_not_block_one_another(address: str, gallery: Gallery) -> None:
    shots = [shot.path.read_bytes() for shot in gallery.role(SHOT)[:24]]
    alone = [found(address, data, k=3) for data in shots]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda data: found(address, data, k=3), shots))
    assert together == alone


def test_the_page_says_when_the_server_runs_another_version(
    browser: Any, root: Path, server: Any, index: Path, gallery: Gallery, tmp_path: Path
) -> None:
    stored = CodeIndex.open(index).sample(1)[0]
    other = Origin("ffffffffffff", "engine")
    batch = Batch([stored.id], stored.code[None])
    CodeIndex.build(tmp_path / "other", [batch], other, server.spec.dim)
    with (
        page(root, tmp_path / "other", server.grpc_url) as address,
        tab(browser, address) as opened,
    ):
        opened.wait_for_selector("#status.down:has-text('Another embedder version')")
        assert "Their codes cannot be compared" in opened.get_attribute("#status", "title")
        drop(opened, gallery.role(SHOT)[0].path)
        opened.wait_for_selector("#alert-text:has-text('cannot be compared')")
        assert "ffffffffffff" in opened.inner_text("#alert-text")
        assert opened.locator("#alert-retry").is_hidden()


def test_the_page_names_the_disagreement_of_another_engine(
    browser: Any, root: Path, server: Any, index: Path, gallery: Gallery, tmp_path: Path
) -> None:
    stored = CodeIndex.open(index).sample(16)
    codes = np.stack([row.code for row in stored])
    codes[:, 0] ^= 0b1000_0000  # one bit of each
    sources = [row.metadata["source"] for row in stored]
    batch = Batch([row.id for row in stored], codes, {"source": sources})
    home = Origin(server.spec.version, "another-engine")
    roots = [str(root / "demo")]
    CodeIndex.build(tmp_path / "other", [batch], home, server.spec.dim, roots=roots)
    with (
        page(root, tmp_path / "other", server.grpc_url) as address,
        tab(browser, address) as opened,
    ):
        drop(opened, gallery.role(SHOT)[0].path)
        opened.wait_for_selector("#columns .card")
        assert "another-engine: 0.1% of the bits differ" in opened.inner_text("#note")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield chromium
        chromium.close()


@contextmanager
def tab(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """A tab that fails the test on any script error or request to another host."""
    context = browser.new_context(**options)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((address, "blob:", "data:"))
            else problems.append(request.url)
        ),
    )
    opened.goto(address)
    yield opened
    context.close()
    assert not problems


TRANSFER = """([event, name, type, base64]) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    const options = { bubbles: true, cancelable: true };
    document.body.dispatchEvent(event === "paste"
        ? new ClipboardEvent(event, { clipboardData: transfer, ...options })
        : new DragEvent(event, { dataTransfer: transfer, ...options }));
}"""


def give(opened: Any, event: str, path: Path, kind: str = "image/jpeg") -> None:
    """Paste or drop a file, as the browser hands it over."""
    data = base64.b64encode(path.read_bytes()).decode()
    opened.evaluate(TRANSFER, [event, path.name, kind, data])


def drop(opened: Any, path: Path, kind: str = "image/jpeg") -> None:
    give(opened, "dragover", path, kind)
    assert opened.locator("#drop").is_visible()
    give(opened, "drop", path, kind)
    assert opened.locator("#drop").is_hidden()


def names(opened: Any) -> list[str]:
    return [card.get_attribute("data-id") for card in opened.locator("#columns .card").all()]


def test_drop_crop_compare_and_search_from_a_result(
    browser: Any, address: str, gallery: Gallery, root: Path, tmp_path: Path
) -> None:
    folder = root / "docs" / "images" if SCREENSHOTS else tmp_path
    shot = gallery.role(SHOT)[0]
    size = {"width": 1280, "height": 860}
    with tab(browser, address, viewport=size, color_scheme="light") as opened:
        opened.wait_for_selector("#example-grid .card")
        drop(opened, shot.path)
        opened.wait_for_selector("#columns .card")
        whole = names(opened)
        assert len(whole) == 12
        answer = found(address, shot.path.read_bytes())
        assert whole == ids(answer)
        for label in ("upload", "embedding", "search"):
            assert opened.locator("#times dt", has_text=label).count() == 1
        assert opened.locator("#raster").bounding_box()["height"] > 50
        assert f"{8 * len(base64.b64decode(answer['query']['code'])):,} bits" in opened.inner_text(
            "#code-size"
        )

        frame = opened.locator("#photo-frame").bounding_box()
        at = lambda x, y: (frame["x"] + x * frame["width"], frame["y"] + y * frame["height"])  # noqa: E731
        with opened.expect_request(lambda request: "crop=" in request.url) as sent:
            opened.mouse.move(*at(0.25, 0.3))
            opened.mouse.down()
            opened.mouse.move(*at(0.8, 0.95), steps=6)
            opened.mouse.up()
        crop = re.search(r"crop=([^&]*)", sent.value.url.replace("%2C", ","))
        assert crop is not None
        box = [float(value) for value in crop[1].split(",")]
        assert box == pytest.approx([0.25, 0.3, 0.8, 0.95], abs=0.01)
        opened.wait_for_selector("#heading:has-text('part')")
        assert names(opened) == ids(found(address, shot.path.read_bytes(), crop[1]))

        # The order of the results is another question about the same embedding.
        uploads: list[str] = []
        opened.on("request", lambda request: uploads.append(request.url))
        opened.locator(".switch").click()
        opened.wait_for_selector(".columns.several")
        assert opened.locator("#columns .column h2").all_inner_texts() == [
            "Float",
            "Code",
            "Re-ranked",
        ]
        assert not [address for address in uploads if "/v1/embeddings" in address]
        opened.locator("#columns .card").nth(2).hover()
        assert "bits differ from" in opened.inner_text("#raster-note")
        opened.wait_for_load_state("networkidle")
        opened.screenshot(path=folder / "page-compare.png")

        shown, box_style = names(opened), opened.get_attribute("#box", "style")
        product = shown[1]
        opened.locator("#columns .card").nth(1).click()
        opened.wait_for_selector("#heading:has-text('Like ')")
        opened.wait_for_url(f"**/#like={product}")
        opened.wait_for_selector("#columns:not(.busy)")
        assert product not in names(opened)
        # Back brings photo and crop again, and the focus to the card that was chosen.
        opened.go_back()
        opened.wait_for_selector("#heading:has-text('part')")
        assert opened.get_attribute("#box", "style") == box_style
        assert opened.get_attribute("#photo", "src").startswith("blob:")
        assert names(opened) == shown
        assert opened.evaluate("document.activeElement.dataset.id") == product
        opened.go_back()
        opened.wait_for_selector("#invite")
        assert not names(opened)
    with tab(
        browser,
        address,
        viewport={"width": 390, "height": 844},
        color_scheme="dark",
        device_scale_factor=2,
        is_mobile=True,
        has_touch=True,
    ) as opened:
        assert opened.locator("#choose").is_visible()
        assert opened.inner_text("#invite") == "Choose a photo"  # Nothing to drop or paste with.
        opened.set_input_files("#file", str(shot.path))
        opened.wait_for_selector("#columns .card")
        opened.wait_for_load_state("networkidle")
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        opened.screenshot(path=folder / "page-phone.png")


def test_results_no_nearer_than_chance_are_marked_and_folded_away(
    browser: Any, address: str, index: Path, gallery: Gallery
) -> None:
    chance = CodeIndex.open(index).chance()
    assert chance is not None
    with tab(browser, address) as opened:
        give(opened, "paste", gallery.role(SHOT)[0].path)
        opened.wait_for_selector("#columns .card")
        answer = found(address, gallery.role(SHOT)[0].path.read_bytes())
        hits = answer["data"]
        near = [hit["id"] for hit in hits if hit["distance"] < chance]
        assert 0 < len(near) < 12
        assert names(opened) == [hit["id"] for hit in hits]
        visible = [card for card in opened.locator("#columns .card").all() if card.is_visible()]
        assert [card.get_attribute("data-id") for card in visible] == near
        assert f"{len(near)} result" in opened.inner_text("#said")
        assert f"{hits[0]['distance']} bits differ" in visible[0].inner_text()
        bits = 8 * len(base64.b64decode(answer["query"]["code"]))
        mark = opened.locator(".meter b").first.evaluate("(mark) => parseFloat(mark.style.left)")
        assert mark == pytest.approx(100 * (1 - 2 * chance / bits), abs=1e-3)  # as Chromium rounds
        opened.locator(".far summary").click()
        assert opened.locator("#columns .card").nth(11).is_visible()
        opened.fill("#where", "name == 'nothing'")
        opened.keyboard.press("Enter")
        opened.wait_for_selector('#said:has-text("No results nearer than chance where")')
        opened.fill("#where", "nonsense <")
        opened.keyboard.press("Enter")
        opened.wait_for_selector("#alert-text:has-text('is no condition')")
        assert opened.locator("#photo").is_visible()


def test_equal_codes_share_a_card_until_asked_for(
    browser: Any, root: Path, server: Any, index: Path, tmp_path: Path
) -> None:
    rows = CodeIndex.open(index).sample(20)
    ids = [*(row.id for row in rows), *(f"copy-{n}" for n in range(15))]
    batch = Batch(ids, np.stack([row.code for row in rows] + 15 * [rows[1].code]))
    CodeIndex.build(tmp_path / "i", [batch], CodeIndex.open(index).header.origin, server.spec.dim)
    with page(root, tmp_path / "i", server.grpc_url) as address, tab(browser, address) as opened:
        opened.goto(f"{address}/#like={rows[0].id}")
        opened.reload()
        opened.wait_for_selector("#columns .card")
        shown = names(opened)
        assert len(shown) == 12
        opened.goto(f"{address}/#like={rows[1].id}")
        opened.wait_for_selector("#columns .card:has-text('same code')")
        assert names(opened)[0] == "copy-0"
        opened.locator(".cell .plain").click()
        assert names(opened)[:15] == [f"copy-{n}" for n in range(15)]
        assert opened.evaluate("document.activeElement.dataset.id") == "copy-1"


def test_the_status_tells_within_seconds_that_the_server_went_down(
    browser: Any, root: Path, tmp_path: Path
) -> None:
    batch = Batch(["a"], codes([b"a"]))
    CodeIndex.build(tmp_path / "i", [batch], Origin(VERSION, ENGINE), DIM)
    with ExitStack() as up:
        peer = up.enter_context(serving(Peer()))
        with page(root, tmp_path / "i", peer.url) as address, tab(browser, address) as opened:
            opened.wait_for_selector("#status.up")
            up.close()
            opened.wait_for_selector("#status.down")
            assert "Embedding server is down" in opened.inner_text("#status")


def test_an_open_tab_goes_on_with_the_index_that_became_active(
    browser: Any, root: Path, gallery: Gallery, tmp_path: Path
) -> None:
    other = "abcabcabcabc"
    stamped = Peer(config_version=other, stamp=lambda number: f"{other} {ENGINE}")
    with serving(Peer()) as blue, serving(stamped) as green:
        for name, version in (("blue", VERSION), ("green", other)):
            rows = [f"{name} {row}" for row in range(20)]
            batch = Batch(rows, codes([row.encode() for row in rows]))
            CodeIndex.build(tmp_path / name, [batch], Origin(version, ENGINE), DIM)
        activate(tmp_path / "blue")
        urls = (blue.url, "--url", green.url)
        with page(root, tmp_path, *urls) as address, tab(browser, address) as opened:
            drop(opened, gallery.role(SHOT)[0].path)
            opened.wait_for_selector("#columns .card", state="attached")
            assert {name.split()[0] for name in names(opened)} == {"blue"}
            activate(tmp_path / "green")
            # The vector of the photo that the tab keeps is of blue's version.
            opened.locator("label.switch:has(#compare)").click()
            opened.wait_for_selector("#columns .card[data-id^=green]", state="attached")
            assert {name.split()[0] for name in names(opened)} == {"green"}


def test_a_pasted_photo_is_searched(browser: Any, address: str, gallery: Gallery) -> None:
    with tab(browser, address) as opened:
        give(opened, "paste", gallery.role(SHOT)[5].path)
        opened.wait_for_selector("#columns .card")
        assert len(names(opened)) == 12


@pytest.mark.parametrize("kind", ["image/jpg", "image/pjpeg", ""])
def test_a_photo_is_searched_whatever_the_browser_calls_it(
    browser: Any, address: str, gallery: Gallery, kind: str
) -> None:
    with tab(browser, address) as opened:
        drop(opened, gallery.role(SHOT)[5].path, kind)
        opened.wait_for_selector("#columns .card")
        assert len(names(opened)) == 12


def test_the_page_shows_pictures_of_its_roots_only_and_lays_the_others_out_blank(
    browser: Any, root: Path, server: Any, index: Path, gallery: Gallery, tmp_path: Path
) -> None:
    elsewhere = ["--root", str(tmp_path)]
    with (
        page(root, index, server.grpc_url, *elsewhere) as address,
        tab(browser, address) as opened,
    ):
        drop(opened, gallery.role(SHOT)[0].path)
        opened.wait_for_selector("#columns .card .blank")
        assert opened.locator("#columns .card .blank").count() == 12
        assert opened.locator("#columns .card img").count() == 0


class Blank(http.server.BaseHTTPRequestHandler):
    """Another site: a page of nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_another_site_in_the_same_browser_gets_nothing(
    browser: Any, address: str, gallery: Gallery
) -> None:
    data = base64.b64encode(gallery.role(SHOT)[0].path.read_bytes()).decode()
    upload = """([url, data]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        return fetch(url, { method: "POST", body: bytes, mode: "no-cors" }).catch(() => 0);
    }"""
    look = """(url) => new Promise((told) => {
        const picture = new Image();
        picture.onload = () => told("seen");
        picture.onerror = () => told("unseen");
        picture.src = url;
    })"""
    name = gallery.role(CATALOGUE)[0].product
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Blank) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        context = browser.new_context()
        opened = context.new_page()
        opened.goto(f"http://localhost:{site.server_port}/")
        with opened.expect_response(f"{address}/v1/embeddings") as refused:
            opened.evaluate(upload, [f"{address}/v1/embeddings", data])
        assert refused.value.status == 403
        assert opened.evaluate(look, f"{address}/picture?id={quote(name)}") == "unseen"
        read = "(url) => fetch(url).then(() => 'read', () => 'refused')"
        assert opened.evaluate(read, f"{address}/v1/index") == "refused"
        context.close()
        site.shutdown()
    with tab(browser, address) as opened:
        assert opened.evaluate(look, f"{address}/picture?id={quote(name)}") == "seen"


def test_a_bad_photo_is_refused_in_words_and_the_next_one_works(
    browser: Any, address: str, gallery: Gallery, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a photo at all")
    heic = tmp_path / "photo.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1")
    with tab(browser, address) as opened:
        for refused, kind, sentence in (
            (broken, "image/jpeg", "This photo cannot be read: not an image"),
            (broken, "text/plain", "This photo cannot be read: not an image"),
            (heic, "application/octet-stream", "This photo cannot be read: HEIC"),
        ):
            drop(opened, gallery.role(SHOT)[0].path)
            opened.wait_for_selector("#columns .card")
            drop(opened, refused, kind)
            opened.wait_for_selector("#alert:not([hidden])")
            assert sentence in opened.inner_text("#alert")
            assert opened.locator("#alert-retry").is_hidden()
            assert not names(opened)
            # The photo before it is not left standing there.
            assert opened.locator("#photo").is_hidden()
            assert opened.locator("#choose").is_visible()
        drop(opened, gallery.role(SHOT)[0].path)
        opened.wait_for_selector("#columns .card")
        assert opened.locator("#alert").is_hidden()


def test_a_stopped_server_is_said_and_results_still_lead_on(
    browser: Any, root: Path, index: Path, gallery: Gallery
) -> None:
    with page(root, index, "127.0.0.1:1") as address, tab(browser, address) as opened:
        opened.wait_for_selector("#status.down")
        assert "Embedding server is down" in opened.inner_text("#status")
        drop(opened, gallery.role(SHOT)[0].path)
        opened.wait_for_selector("#alert:not([hidden])")
        assert "is not answering" in opened.inner_text("#alert")
        assert opened.locator("#alert-retry").is_visible()
        # What is in the index can be searched from without the server.
        opened.goto(f"{address}/#like={gallery.role(CATALOGUE)[0].product}")
        opened.reload()
        opened.wait_for_selector("#columns .card")
        assert len(names(opened)) == 12


def test_everything_works_by_keyboard(browser: Any, address: str, gallery: Gallery) -> None:
    with tab(browser, address) as opened:
        choosers: list[Any] = []
        opened.on("filechooser", lambda chooser: choosers.append(chooser))
        opened.wait_for_selector("#example-grid .card")
        focused = lambda: opened.evaluate("document.activeElement.id")  # noqa: E731
        for _ in range(6):
            opened.keyboard.press("Tab")
            if focused() == "choose":
                break
        assert focused() == "choose"
        opened.keyboard.press("Enter")
        while not choosers:
            opened.wait_for_timeout(50)
        choosers[0].set_files(str(gallery.role(SHOT)[0].path))
        opened.wait_for_selector("#columns .card")
        opened.focus("#crop")
        with opened.expect_request(lambda request: "crop=" in request.url):
            opened.keyboard.press("Enter")
        assert focused() == "box"
        opened.wait_for_selector("#heading:has-text('part')")
        with opened.expect_request(lambda request: "crop=0.2200%2C0.2000" in request.url):
            opened.keyboard.press("ArrowRight")
        with opened.expect_request(
            lambda request: "0.2200%2C0.2000%2C0.8200%2C0.7800" in request.url
        ):
            opened.keyboard.press("Shift+ArrowUp")
        with opened.expect_request(re.compile(r"/v1/embeddings\?(?!.*crop=)")):
            opened.keyboard.press("Escape")
        assert focused() == "crop"
        opened.wait_for_selector("#heading:has-text('Like your photo')")
        opened.wait_for_selector("#columns:not(.busy)")
        opened.focus(".far summary")
        opened.keyboard.press("Enter")
        opened.focus("#columns .card")
        opened.keyboard.press("ArrowRight")
        second = names(opened)[1]
        assert opened.evaluate("document.activeElement.dataset.id") == second
        opened.keyboard.press("Enter")
        opened.wait_for_url(f"**/#like={second}")
        opened.wait_for_selector("#heading:has-text('Like ')")
        opened.wait_for_function("document.activeElement.matches('.card')")
        assert opened.evaluate("document.activeElement.dataset.id") == names(opened)[0] != second
        opened.keyboard.press("ArrowRight")
        assert opened.evaluate("document.activeElement.dataset.id") == names(opened)[1]
