"""Names and files of every kind: what a search visits, what it refuses to open."""

import os
from pathlib import Path

import pytest
from source_files import contents, searched, write_tar

from unified_embedding.corpus.places import split_options, with_options
from unified_embedding.corpus.sources import Item, find
from unified_embedding.errors import InputError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_folder_that_links_to_itself_is_visited_once(tmp_path: Path) -> None:
    deep = tmp_path / "top" / "z" / "deep"
    deep.mkdir(parents=True)
    (deep / "0.jpg").write_bytes(b"picture")
    (tmp_path / "top" / "a").symlink_to(".")
    (tmp_path / "top" / "b").symlink_to("z")
    (deep / "up").symlink_to("../..")
    found, passed = searched("top")
    assert list(found) == ["top/z/deep/0.jpg"]
    assert sorted(passed["links to a folder that is visited by another way"]) == [
        str(tmp_path / "top" / "a"),
        str(tmp_path / "top" / "b"),
        str(deep / "up"),
    ]
    assert list(searched("top/**/*.jpg")[0]) == ["top/z/deep/0.jpg"]
    assert list(searched("top/*")[0]) == ["top/z/deep/0.jpg"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.jpg").write_bytes(b"picture")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to("../elsewhere")
    assert searched("top")[0] == {"top/link/0.jpg": (b"picture", {})}


@pytest.mark.parametrize("part", ["what?", "a::b", "[x]", "#1", "a%20b", "b?x=1", "*", "a b"])
def test_any_name_is_a_name(tmp_path: Path, part: str) -> None:
    folder = tmp_path / part
    folder.mkdir()
    (folder / f"{part}.jpg").write_bytes(b"picture")
    write_tar(folder / f"{part}.tar", [(f"{part}.jpg", b"member")])
    found, _ = searched(part)
    assert found == {
        f"{part}/{part}.jpg": (b"picture", {}),
        f"{part}/{part}.tar::{part}.jpg": (b"member", {}),
    }
    file, member = sorted(find([part]), key=lambda item: item.kind)
    assert file.source == str(folder / f"{part}.jpg")
    assert member.source == f"{folder / f'{part}.tar'}::{part}.jpg"


def test_a_name_that_is_not_utf8_is_stored_and_read(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xe9"
    os.mkdir(folder)
    for name, data in ((b"/\xe9.jpg", b"picture"), (b"/plain.jpg", b"other")):
        with open(folder + name, "wb") as file:
            file.write(data)
    write_tar(tmp_path / "x.tar", [("0.jpg", b"member")])
    os.rename(b"x.tar", folder + b"/\xe9.tar")
    found, _ = searched(os.fsdecode(b"\xe9"))
    assert found == {
        "\\xe9/\\xe9.jpg": (b"picture", {}),
        "\\xe9/\\xe9.tar::0.jpg": (b"member", {}),
        "\\xe9/plain.jpg": (b"other", {}),
    }
    for item in find([os.fsdecode(b"\xe9")]):
        assert item.place.startswith("file:///")
        assert item.source.startswith(f"{tmp_path}/\\xe9/")


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "heic", "JPG"])
def test_suffixes_are_those_that_the_library_names(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"0.{suffix}").write_bytes(b"picture")
    write_tar(tmp_path / "in" / "x.tar", [(f"0.{suffix}", b"member")])
    assert list(searched("in")[0]) == [f"in/0.{suffix}", f"in/x.tar::0.{suffix}"]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "0.jpg")
    os.mkfifo(tmp_path / "in" / "1.tar")
    os.mkfifo(tmp_path / "in" / "metadata.csv")
    (tmp_path / "in" / "2.jpg").symlink_to("/dev/zero")
    (tmp_path / "in" / "3.jpg").symlink_to("nowhere")
    (tmp_path / "in" / "4.jpg").write_bytes(b"picture")
    (tmp_path / "in" / ".5.jpg").write_bytes(b"hidden")
    found, passed = searched("in")
    why = "cannot be read (it is not a regular file but a pipe, socket or device)"
    assert [data for data, _ in found.values()] == [
        why,
        why,
        "cannot be read (No such file or directory)",
        b"picture",
    ]
    assert len(passed["tar and Parquet files, and tables, that cannot be used"]) == 2
    assert passed["hidden files and folders"] == [str(tmp_path / "in" / ".5.jpg")]
    for name in ("in/0.jpg", "/dev/zero", "in/1.tar"):
        with pytest.raises(InputError, match="not a regular file but a pipe, socket or device"):
            searched(name)


def test_a_size_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A file and a member that no memory could hold: both are all hole."""
    with open("huge.jpg", "wb") as file:
        file.truncate(1 << 40)
    write_tar(tmp_path / "x.tar", [("0.jpg", b"x" * 3000)])
    items = [*find(["huge.jpg", "x.tar"]), Item("t::1", "tar", "huge.jpg", 512, 1 << 39)]
    told = [getattr(one, "reason", None) for one in contents(items, 2000)]
    assert told == [
        f"it has {size:,} bytes; the limit is 2,000 (UNIFIED_EMBEDDING_MAX_IMAGE_BYTES)"
        for size in (1 << 40, 3000, 1 << 39)
    ]


@pytest.mark.parametrize(
    ("place", "path", "options"),
    [
        ("s3://b/k.jpg", "s3://b/k.jpg", ""),
        ("s3://b/k.jpg?region=x", "s3://b/k.jpg", "region=x"),
        ("s3://b/a?b.jpg?region=x&y=z", "s3://b/a?b.jpg", "region=x&y=z"),
        ("s3://b/a?b=c.jpg?", "s3://b/a?b=c.jpg", ""),
        ("/a/b?c=d.jpg", "/a/b?c=d.jpg", ""),
    ],
)
def test_a_place_with_question_marks_keeps_them(place: str, path: str, options: str) -> None:
    assert split_options(place) == (path, options)
    if place.startswith("s3"):
        assert with_options(path, options) == place
