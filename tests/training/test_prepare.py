"""`make data` on made-up packages: once, again, after damage, and with a client missing."""

import io
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_emoji import icons, pictures
from made_up_furniture import deb
from rich.console import Console

pytest.importorskip("embreex", reason="rendering needs the extra `train`")
pytest.importorskip("resvg_py", reason="rasterising needs resvg-py (the extra `train`)")

from unified_embedding.datasets import prepare, splits
from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.datasets.sources import EMOJI, FURNITURE
from unified_embedding.datasets.store import sha256

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


CONCEPTS = [
    splits.Concept("apple", "apple", "apple", "train"),
    splits.Concept("ball", "ball", "ball", "test"),
    splits.Concept("cook", "cook", "cook", "test"),
    splits.Concept("man-cook", "cook", "cook", "test"),
]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Made-up packages, pinned in place of the real ones; no registry's client is in reach."""
    folder = tmp_path_factory.mktemp("made-up") / "downloads"
    furniture = replace(FURNITURE, sha256=sha256(deb(folder / FURNITURE.file, 2).read_bytes()))
    designs = {}
    for design, shape in SHAPES.items():
        path = icons(folder / EMOJI[design].file, shape)
        designs[design] = replace(EMOJI[design], sha256=sha256(path.read_bytes()))
    path = pictures(folder / EMOJI["fluent-3d"].file)
    designs["fluent-3d"] = replace(EMOJI["fluent-3d"], sha256=sha256(path.read_bytes()))
    products = {f"{name}-box-{n}": split for name, split in PRODUCTS.items() for n in (1, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "FURNITURE", furniture)
        patch.setattr(prepare, "EMOJI", designs)
        patch.setattr(splits, "product_splits", lambda: products)
        patch.setattr(splits, "emoji_concepts", lambda: CONCEPTS)
        patch.setenv("PATH", str(folder))
        yield folder


@pytest.fixture(scope="module")
def finished(downloads: Path) -> Path:
    """A data folder after one run."""
    home = downloads.parent
    report = run(home)
    assert (report.tasks, report.missing) == (("browse", "camera", "shop"), ())
    assert (report.downloaded, report.manifest) == (0, home / "manifest.csv")
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished data folder."""
    shutil.copytree(finished, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def fresh(downloads: Path, tmp_path: Path) -> Path:
    """A data folder with the packages and nothing else."""
    shutil.copytree(downloads, tmp_path / "downloads")
    return tmp_path


def run(home: Path, jobs: int = 1, plan: prepare.Plan = PLAN) -> prepare.Report:
    return prepare.prepare(home, plan, jobs, Console(file=io.StringIO()))


def files(home: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (home / "pictures").rglob("*") if p.is_file()}


def test_manifest_says_what_was_made(home: Path) -> None:
    rows = read_manifest(home / "manifest.csv")
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
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = prepare._render, []

    def stop_at_third(task: object, libraries: Path) -> dict[str, bytes]:
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(task, libraries)

    monkeypatch.setattr(prepare, "_render", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(fresh)
    done = [p for p in files(fresh) if p.endswith(".jpg") and "crops-" not in p]
    assert len(done) == 2
    assert not (fresh / "manifest.csv").exists()
    kept = {path: Path(path).stat().st_mtime_ns for path in done}
    monkeypatch.setattr(prepare, "_render", real)
    assert run(fresh).manifest is not None
    assert {path: Path(path).stat().st_mtime_ns for path in done} == kept
    assert not (fresh / ".libraries").exists()


def test_more_shots_leave_the_earlier_ones_alone(home: Path) -> None:
    before = {k: v for k, v in files(home).items() if k.endswith((".jpg", ".png"))}
    more = prepare.Plan({**PLAN.shots, "train": 5}, PLAN.scenes)
    report = run(home, plan=more)
    assert report.made > 0
    after = files(home)
    assert before.items() <= after.items()
    assert sum("/train/" in path and "shots-" in path for path in after) == 10


def test_processes_render_the_same_files(home: Path) -> None:
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
