"""Files are made once, found again, and made again when they are damaged."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding.datasets.store import Store, data_home, sha256


def test_what_was_added_is_not_missing_in_a_later_run(tmp_path: Path) -> None:
    Store(tmp_path).add({"a/b.png": b"one", "c.png": b"two"})
    again = Store(tmp_path)
    assert again.missing(["a/b.png", "c.png", "d.png"]) == ["d.png"]
    assert again.checksum("a/b.png") == sha256(b"one")


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    Store(tmp_path).add({"a.png": b"contents", "b.png": b"other"})
    if damage == "gone":
        (tmp_path / "a.png").unlink()
    else:
        (tmp_path / "a.png").write_bytes(b"content!" if damage == "changed" else b"con")
    store = Store(tmp_path)
    assert store.missing(["a.png", "b.png"]) == ["a.png"]
    store.add({"a.png": b"contents"})
    assert Store(tmp_path).missing(["a.png", "b.png"]) == []


@given(cut=st.integers(min_value=1, max_value=75))
def test_ledger_cut_short_by_a_crash_loses_only_its_last_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    Store(folder).add({"a.png": b"one", "bbbbbb.png": b"two"})
    ledger = folder / "checksums.txt"
    ledger.write_bytes(ledger.read_bytes()[:-cut])
    assert "a.png" not in Store(folder).missing(["a.png", "bbbbbb.png"])
    store = Store(folder)
    store.add({"bbbbbb.png": b"two"})
    assert Store(folder).missing(["a.png", "bbbbbb.png"]) == []


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIFIED_EMBEDDING_DATA", str(tmp_path / "data"))
    assert data_home() == tmp_path / "data"
    monkeypatch.delenv("UNIFIED_EMBEDDING_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_home() == tmp_path / "cache" / "unified-embedding"
