"""Pictures from files, folders, globs, tar shards and Parquet."""

import io
import json
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unified_embedding.corpus.places import resolve
from unified_embedding.corpus.sources import PassedOver, Reader, Unreadable, find
from unified_embedding.errors import InputError, StoreError


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `photos` with one of everything; its parent is the working directory."""
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    (photos / ".cache").mkdir()
    (photos / "b.jpg").write_bytes(b"b")
    (photos / "more" / "a.PNG").write_bytes(b"a")
    (photos / "notes.txt").write_bytes(b"no picture")
    (photos / ".hidden.jpg").write_bytes(b"hidden")
    (photos / ".cache" / "c.jpg").write_bytes(b"hidden")
    (photos / "gallery.csv").write_text("image,name\nb.jpg,Bee\nother.jpg,Nobody\n")
    write_tar(
        photos / "set.tar",
        {
            "k1.jpg": b"k-one",
            "k1.json": b'{"caption": "first"}',
            "k2.jpg": b"k-two",
            "k2.cls": b"7\n",
            "k2.txt": b"second",
        },
    )
    monkeypatch.chdir(tmp_path)
    return photos


def found(*inputs: str, **options: Any) -> dict[str, tuple[bytes | Unreadable, dict[str, Any]]]:
    items = list(find(inputs, **options))
    with closing(Reader()) as reader:
        contents = reader.read(items)
    return {
        item.id: (data, json.loads(item.metadata))
        for item, data in zip(items, contents, strict=True)
    }


def test_a_folder_gives_pictures_and_tar_members_in_order(folder: Path) -> None:
    assert found("photos/") == {
        "photos/b.jpg": (b"b", {"name": "Bee"}),
        "photos/more/a.PNG": (b"a", {}),
        "photos/set.tar::k1.jpg": (b"k-one", {"caption": "first"}),
        "photos/set.tar::k2.jpg": (b"k-two", {"cls": "7", "txt": "second"}),
    }
    assert list(found("./photos")) == list(found("photos"))
    sources = [item.source for item in find(["photos"])]
    assert sources[0] == str(folder / "b.jpg")
    assert sources[2] == f"{folder / 'set.tar'}::k1.jpg"


def test_globs_and_files_name_pictures_and_each_counts_once(folder: Path) -> None:
    assert list(found("photos/**/*.PNG", "photos/b.jpg")) == ["photos/more/a.PNG", "photos/b.jpg"]
    passed = PassedOver()
    ids = [item.id for item in find(["photos/b.jpg", "photos"], passed=passed)]
    assert ids.count("photos/b.jpg") == 1
    assert passed.names["pictures named a second time, or under a name that was taken"] == [
        "photos/b.jpg"
    ]


def test_metadata_from_a_csv_beside_the_pictures(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "facts.csv"
    table.write_text("file_name,price\nphotos/more/a.PNG,3\n")
    assert found("photos/more", metadata=table)["photos/more/a.PNG"] == (b"a", {"price": "3"})
    table.write_text("name,price\nx,3\n")
    with pytest.raises(InputError, match="neither of the columns"):
        found("photos/more", metadata=table)
    with pytest.raises(InputError, match="cannot be read"):
        found("photos/more", metadata=tmp_path / "absent.csv")


def test_parquet_with_bytes_structs_or_paths(folder: Path) -> None:
    pq.write_table(
        pa.table({"image": [b"one", None, b"three"], "label": [1, 2, 3]}),
        "bytes.parquet",
        row_group_size=2,
    )
    assert found("bytes.parquet") == {
        "bytes.parquet::0": (b"one", {"label": 1}),
        "bytes.parquet::1": (Unreadable("the row holds no picture (null)"), {"label": 2}),
        "bytes.parquet::2": (b"three", {"label": 3}),
    }
    pq.write_table(pa.table({"image": [{"bytes": b"hf", "path": "x.jpg"}]}), "struct.parquet")
    assert found("struct.parquet") == {"struct.parquet::0": (b"hf", {})}
    pq.write_table(pa.table({"path": ["photos/b.jpg"], "n": [5]}), "paths.parquet")
    by_path = found("paths.parquet")
    assert list(by_path.values()) == [(b"b", {"n": 5})]
    pq.write_table(pa.table({"pixels": [b"x"]}), "named.parquet")
    assert found("named.parquet", image_column="pixels") == {"named.parquet::0": (b"x", {})}
    with pytest.raises(InputError, match=r"columns \['pixels'\].*--image-column"):
        found("named.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("broken.tar", b"not a tar", "broken.tar is not a readable tar"),
        ("broken.parquet", b"not parquet", "broken.parquet is not a readable Parquet"),
        ("set.tar.gz", b"", "compressed"),
    ],
)
def test_files_that_cannot_be_understood_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(find([name]))


def test_inputs_without_pictures_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jpg does not exist"):
        list(find(["absent.jpg"]))
    with pytest.raises(InputError, match=r"no file matches photos/\*\.gif"):
        list(find(["photos/*.gif"]))
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        list(find(["photos/empty"]))


def test_a_picture_that_went_away_is_reported_not_raised(folder: Path) -> None:
    items = list(find(["photos"]))
    (folder / "b.jpg").unlink()
    (folder / "set.tar").write_bytes((folder / "set.tar").read_bytes()[:600])
    gone, there, *members = Reader().read(items)
    assert gone == Unreadable("cannot be read (No such file or directory)")
    assert there == b"a"
    assert members[0] == b"k-one"
    assert members[1] == Unreadable("cannot be read (its file ends before it does)")


def test_a_place_holds_no_credentials(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="credentials"):
        resolve("s3://key:secret@bucket/path")
    with pytest.raises(StoreError, match="nosuch://x"):
        resolve("nosuch://x/y")
