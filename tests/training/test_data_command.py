"""The command behind `make data`: what it says, and its exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("embreex", reason="the command needs the extra `train`")

ROOT = Path(__file__).parents[2]


def data(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unified_embedding.datasets", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_without_clients_it_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    home = str(tmp_path / "data")
    done = data(PATH=str(tmp_path), UNIFIED_EMBEDDING_DATA=home, COLUMNS="200")
    assert done.returncode == 1
    assert home in done.stderr
    assert "needs npm, which is not installed" in done.stderr
    assert "needs apt-get, which is not installed" in done.stderr
    assert "nothing could be prepared" in done.stderr


def test_check_counts_rows_or_names_the_bad_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,task,split,domain\na.png,shop,train,photo\n")
    done = data("check", str(manifest))
    assert (done.returncode, done.stdout.split()) == (0, ["shop", "train", "photo", "1"])
    manifest.write_text("image,task,split,domain\na.png,shop,training,photo\n")
    done = data("check", str(manifest))
    assert done.returncode == 1
    assert "row 1 ('a.png'): split 'training'" in done.stderr


def test_importer_writes_a_manifest_or_says_what_is_missing(tmp_path: Path) -> None:
    done = data("import-stanford", str(tmp_path))
    assert done.returncode == 1
    assert "Ebay_train.txt does not exist" in done.stderr
