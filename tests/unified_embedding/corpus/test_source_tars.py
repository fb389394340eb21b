"""Pictures in tar files."""

import tarfile
from pathlib import Path

import pytest
from source_files import searched, write_tar

from unified_embedding.corpus.sources.tars import key_and_suffix
from unified_embedding.errors import InputError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("member", "key", "suffix"),
    [
        ("000.jpg", "000", "jpg"),
        ("./000.jpg", "./000", "jpg"),
        ("a.b/c.left.jpg", "a.b/c", "left.jpg"),
        ("v1.2/x", "v1.2/x", ""),
        (".hidden.jpg", ".hidden", "jpg"),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_base_name(member: str, key: str, suffix: str) -> None:
    assert key_and_suffix(member) == (key, suffix)


def test_metadata_belongs_to_the_key_whatever_its_folder_and_suffixes(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "x.tar",
        [
            ("./v1.0/000.json", b'{"caption": "a", "licence": "free"}'),
            ("./v1.0/000.left.jpg", b"left"),
            ("./v1.0/000.right.jpg", b"right"),
            ("./v1.0/000.more.json", b'{"caption": "b", "price": 3}'),
            ("./v1.0/000.txt", b" text \n"),
            ("./v1.0/000.alt.txt", b"other"),
            ("./v2.0/000.jpg", b"another key"),
            ("./v2.0/001.json", b"{}"),
        ],
    )
    found, passed = searched("x.tar")
    facts = {"caption": "a", "licence": "free", "more.caption": "b", "price": 3}
    facts |= {"txt": "text", "alt.txt": "other"}
    assert found == {
        "x.tar::./v1.0/000.left.jpg": (b"left", facts),
        "x.tar::./v1.0/000.right.jpg": (b"right", facts),
        "x.tar::./v2.0/000.jpg": (b"another key", {}),
    }
    assert passed == {"metadata without a picture": ["x.tar::./v2.0/001"]}


@pytest.mark.parametrize(
    ("name", "data", "kept", "told"),
    [
        ("0.json", b"null", {}, "metadata that is JSON but no object: left out"),
        ("0.json", b"7", {}, "metadata that is JSON but no object: left out"),
        ("0.json", b'["a"]', {}, "metadata that is JSON but no object: left out"),
        ("0.json", b"{", {}, "metadata that is not JSON: left out"),
        ("0.json", b"[" * 100_000, {}, "metadata that is not JSON: left out"),
        (
            "0.json",
            b'{"a": "lone \\ud83d end", "b": [NaN, Infinity, 1], "c": 1e999}',
            {"a": "lone \ufffd end", "b": [None, None, 1], "c": None},
            "metadata with values that JSON cannot hold: replaced by null or U+FFFD",
        ),
        ("0.txt", b"caf\xe9", {"txt": "café"}, "text that is not UTF-8: read as Latin-1"),
        ("0.json", b'{"a": "\xe9"}', {"a": "é"}, "text that is not UTF-8: read as Latin-1"),
        ("0.json", b'\xef\xbb\xbf{"a": 1}', {"a": 1}, ""),
        ("0.json", b'{"a": "nul \\u0000"}', {"a": "nul \0"}, ""),
    ],
)
def test_an_odd_metadatum_costs_itself(
    tmp_path: Path, name: str, data: bytes, kept: dict[str, object], told: str
) -> None:
    write_tar(tmp_path / "x.tar", [("0.jpg", b"picture"), (name, data)])
    found, passed = searched("x.tar")
    assert found == {"x.tar::0.jpg": (b"picture", kept)}
    assert list(passed) == ([told] if told else [])


def test_what_is_no_picture_is_counted_in_words(tmp_path: Path) -> None:
    pipe = tarfile.TarInfo("pipe.jpg")
    pipe.type = tarfile.FIFOTYPE
    dangling = tarfile.TarInfo("gone.jpg")
    dangling.type, dangling.linkname = tarfile.LNKTYPE, "nowhere.jpg"
    write_tar(
        tmp_path / "x.tar",
        [
            ("._0.jpg", b"\0\5\x16\7"),
            ("0.jpg", b"picture"),
            ("__MACOSX/._0.jpg", b"\0"),
            ("notes.md", b"#"),
            (pipe, b""),
            (dangling, b""),
        ],
    )
    found, passed = searched("x.tar")
    assert found == {"x.tar::0.jpg": (b"picture", {})}
    assert passed == {
        "files that macOS puts beside others (._*, __MACOSX)": [
            "x.tar::._0.jpg",
            "x.tar::__MACOSX/._0.jpg",
        ],
        "files whose names are not those of pictures": ["x.tar::notes.md"],
        "members that are pipes or devices": ["x.tar::pipe.jpg"],
        "links to what is not in the tar file before them": ["x.tar::gone.jpg"],
    }


def test_links_in_the_tar_are_the_file_they_lead_to(tmp_path: Path) -> None:
    hard, soft = tarfile.TarInfo("b/1.jpg"), tarfile.TarInfo("b/2.jpg")
    hard.type, hard.linkname = tarfile.LNKTYPE, "a/0.jpg"
    soft.type, soft.linkname = tarfile.SYMTYPE, "../a/0.jpg"
    write_tar(tmp_path / "x.tar", [("a/0.jpg", b"picture"), (hard, b""), (soft, b"")])
    found, passed = searched("x.tar")
    assert [data for data, _ in found.values()] == [b"picture"] * 3
    assert passed == {}


def test_names_that_are_not_utf8_are_written_so_that_they_can_be_stored(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("caf\udce9.jpg", b"picture")])
    assert searched("x.tar")[0] == {"x.tar::caf\\xe9.jpg": (b"picture", {})}


def test_a_cut_tar_keeps_what_is_before_the_cut(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{n}.jpg", b"%d" % n * 700) for n in range(4)])
    whole = (tmp_path / "x.tar").read_bytes()
    # Members take 512 bytes of header and 1,024 of data.
    (tmp_path / "x.tar").write_bytes(whole[: 2 * 1536 + 512 + 100])
    found, _ = searched("x.tar")
    assert [data for data, _ in found.values()] == [
        b"0" * 700,
        b"1" * 700,
        "the tar file ends within this member",
    ]
    damaged = bytearray(whole)
    damaged[2 * 1536 : 2 * 1536 + 512] = b"\xff" * 512
    (tmp_path / "x.tar").write_bytes(damaged)
    found, passed = searched("x.tar")
    assert len(found) == 2
    assert list(passed) == ["tar files damaged within: what follows is not read"]


def test_a_sparse_member_is_refused_by_itself(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("0.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    write_tar(tmp_path / "x.tar", [(sparse, b""), ("1.jpg", b"picture")])
    found, _ = searched("x.tar")
    assert "sparse" in str(found["x.tar::0.jpg"][0])
    assert found["x.tar::1.jpg"][0] == b"picture"


def test_a_tar_that_is_compressed_or_none_is_named_and_in_a_folder_counted(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(b"picture")
    with tarfile.open(folder / "packed.tar", "w:gz"):
        pass
    (folder / "none.tar").write_bytes(b"no tar file" * 100)
    (folder / "other.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"packed\.tar is not a readable tar file \(it is compr"):
        searched("folder/packed.tar")
    found, passed = searched("folder")
    assert list(found) == ["folder/0.jpg"]
    assert sorted(passed) == [
        "compressed tar files: unpack them to .tar",
        "tar and Parquet files, and tables, that cannot be used",
    ]
