"""`make data` on made-up packages: once, again, after damage, and with a client missing."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_emoji import icons, pictures
from made_up_furniture import deb
from rich.console import Console

pytest.importorskip("embreex", reason="rendering needs the extra `train`")
pytest.importorskip("resvg_py", reason="rasterising needs resvg-py (the extra `train`)")

from unified_embedding.training.data import prepare, splits
from unified_embedding.training.data.sources import EMOJI, FURNITURE
from unified_embedding.training.data.store import sha256
from unified_embedding.training.manifest import read_manifest

PLAN = prepare.Plan(
    shots={"train": 2, "validation": 1, "test": 1}, scenes={"train": 1, "validation": 1, "test": 1}
)
SHAPES = {"twemoji": "square", "noto": "circle", "openmoji": "bar", "fluent-flat": "square"}
PRODUCTS = {
    "scopia": "train",
    "blendswap-cc-0": "validation",
    "blendswap-cc-by": "test",
    "katorlegaz": "gallery",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose packages are already downloaded, all made up."""
    downloads = tmp_path / "downloads"
    furniture = replace(FURNITURE, sha256=sha256(deb(downloads / FURNITURE.file, 2).read_bytes()))
    monkeypatch.setattr(prepare, "FURNITURE", furniture)
    designs = {}
    for design, shape in SHAPES.items():
        path = icons(downloads / EMOJI[design].file, shape)
        designs[design] = replace(EMOJI[design], sha256=sha256(path.read_bytes()))
    path = pictures(downloads / EMOJI["fluent-3d"].file)
    designs["fluent-3d"] = replace(EMOJI["fluent-3d"], sha256=sha256(path.read_bytes()))
    monkeypatch.setattr(prepare, "EMOJI", designs)
    products = {
        f"{library}-box-{number}": split for library, split in PRODUCTS.items() for number in (1, 2)
    }
    monkeypatch.setattr(splits, "product_splits", lambda: products)
    concepts = [
        splits.Concept("apple", "apple", "apple", "train"),
        splits.Concept("ball", "ball", "ball", "test"),
        splits.Concept("cook", "cook", "cook", "test"),
        splits.Concept("man-cook", "cook", "cook", "test"),
    ]
    monkeypatch.setattr(splits, "emoji_concepts", lambda: concepts)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def run(home: Path, jobs: int = 1, plan: prepare.Plan = PLAN) -> prepare.Report:
    return prepare.prepare(home, plan, jobs, Console(file=io.StringIO()))


def files(home: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (home / "pictures").rglob("*") if p.is_file()}


def test_manifest_says_what_was_made(home: Path) -> None:
    report = run(home)
    assert (report.tasks, report.missing, report.downloaded) == (
        ("browse", "camera", "shop"),
        (),
        0,
    )
    assert report.manifest is not None
    rows = read_manifest(report.manifest)
    counts = Counter((row["task"], row["domain"], row["split"]) for row in rows)
    assert counts["browse", "openmoji", "train"] == 0
    # cook and man-cook look the same in each design, and count once.
    assert counts["browse", "twemoji", "test"] == 2
    assert counts["browse", "twemoji", "train"] == 1
    assert counts["camera", "shot", "train"] == 4
    assert counts["camera", "shot", "test"] == 2
    assert counts["camera", "shot", "gallery"] == 0
    assert counts["camera", "catalogue", "gallery"] == 2
    assert counts["shop", "catalogue", "train"] == 2
    assert 1 <= counts["shop", "scene", "test"] <= 2
    assert not any(row["shop_instance"] for row in rows if row["task"] == "camera")
    credit = (home / "ATTRIBUTION.md").read_text()
    assert "Maker 1" in credit
    assert "CC-BY-SA-4.0" in credit


def test_second_run_makes_nothing_and_damage_is_repaired(home: Path) -> None:
    run(home)
    before = files(home)
    assert run(home).made == 0
    for victim in ("emoji/twemoji/ball.png", "catalogue/scopia-box-1.png"):
        (home / "pictures" / victim).write_bytes(b"damaged")
        assert run(home).made == 1
    next((home / "pictures").glob("crops-*/test/*.jpg")).unlink()
    assert run(home).made >= 1
    after = files(home)
    ledger = str(home / "pictures" / "checksums.txt")
    assert {k: v for k, v in after.items() if k != ledger} == {
        k: v for k, v in before.items() if k != ledger
    }


def test_interrupted_run_goes_on_where_it_stopped(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = prepare._render, []

    def stop_at_third(task: object, libraries: Path) -> dict[str, bytes]:
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(task, libraries)

    monkeypatch.setattr(prepare, "_render", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(home)
    done = [path for path in files(home) if "shots-" in path]
    assert len(done) == 2
    assert not (home / "manifest.csv").exists()
    kept = {path: Path(path).stat().st_mtime_ns for path in done}
    monkeypatch.setattr(prepare, "_render", real)
    assert run(home).manifest is not None
    assert {path: Path(path).stat().st_mtime_ns for path in done} == kept
    assert not list(home.glob(".libraries-*"))


def test_more_shots_leave_the_earlier_ones_alone(home: Path) -> None:
    run(home)
    before = {k: v for k, v in files(home).items() if k.endswith((".jpg", ".png"))}
    more = prepare.Plan({**PLAN.shots, "train": 5}, PLAN.scenes)
    report = run(home, plan=more)
    assert report.made > 0
    after = files(home)
    assert before.items() <= after.items()
    assert sum("shots-r1/train" in path for path in after) == 10


def test_processes_render_the_same_files(home: Path, tmp_path: Path) -> None:
    run(home)
    alone = {k: v for k, v in files(home).items() if k.endswith(".jpg")}
    for path in alone:
        Path(path).unlink()
    run(home, jobs=2)
    assert {k: v for k, v in files(home).items() if k.endswith(".jpg")} == alone


@pytest.mark.parametrize(
    ("gone", "left"), [(FURNITURE.file, ("browse",)), (EMOJI["noto"].file, ("camera", "shop"))]
)
def test_without_a_client_the_rest_still_works(
    home: Path, gone: str, left: tuple[str, ...]
) -> None:
    (home / "downloads" / gone).unlink()
    report = run(home)
    assert report.tasks == left
    assert len(report.missing) == 1
    assert "which is not installed" in report.missing[0]
    assert gone in report.missing[0]
