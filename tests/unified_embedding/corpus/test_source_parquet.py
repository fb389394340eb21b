"""Pictures and paths in Parquet files."""

import base64
import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import contents, searched

from unified_embedding.corpus.sources import Item, Reader, find
from unified_embedding.corpus.sources.column import ColumnReader
from unified_embedding.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `data` with three pictures; its parent is the working directory."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / f"p{number}.jpg").write_bytes(b"picture %d" % number)
    monkeypatch.chdir(tmp_path)
    return data


def write(columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), "data/t.parquet", **options)
    return "data/t.parquet"


PATHS = ["p0.jpg", "p1.jpg", "p2.jpg"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(PATHS),
        pa.array(PATHS, pa.large_string()),
        pa.array(PATHS, pa.string_view()),
        pa.array(PATHS).dictionary_encode(),
        pa.array(PATHS, pa.large_string()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_paths_of_every_text_type_are_files(column: pa.Array) -> None:
    found, _ = searched(write({"path": column}))
    assert [data for data, _ in found.values()] == [b"picture 0", b"picture 1", b"picture 2"]
    assert list(found) == [os.path.abspath(f"data/{path}") for path in PATHS]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"a", b"bb", None]),
        pa.array([b"a", b"bb", None], pa.large_binary()),
        pa.array([b"a", b"bb", None], pa.binary_view()),
        pa.array([b"a", b"bb", None]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_bytes_of_every_type_are_pictures(column: pa.Array) -> None:
    found, _ = searched(write({"image": column}))
    null = "the row holds no picture (null)"
    assert [data for data, _ in found.values()] == [b"a", b"bb", null]
    found, _ = searched(write({"image": pa.array([b"ab", b"cd"], pa.binary(2))}))
    assert [data for data, _ in found.values()] == [b"ab", b"cd"]


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}, {"row_group_size": 2}])
def test_a_struct_is_read_by_its_bytes_or_by_its_path(options: dict[str, Any]) -> None:
    rows = [
        {"bytes": b"held", "path": "none.jpg"},
        {"bytes": None, "path": "p1.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"held too", "path": None},
    ]
    found, _ = searched(write({"image": rows, "n": list(range(5))}, **options))
    neither = "the row holds neither a picture nor a path"
    assert list(found.values()) == [
        (b"held", {"n": 0}),
        (b"picture 1", {"n": 1}),
        (neither, {"n": 2}),
        (neither, {"n": 3}),
        (b"held too", {"n": 4}),
    ]
    assert list(found) == [f"data/t.parquet::{row}" for row in range(5)]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ([[{"bytes": b"x", "path": "a"}]], r"image holds list<.*--image-column \(may be \['path'"),
        ([1], "image holds int64; name the one with pictures or their paths by --image-column"),
        ([base64.b64encode(b"a picture" * 30).decode()], "image holds base64 text.*--image-column"),
        (["http://host/a.jpg"], "image holds web addresses.*--image-column"),
        (["/etc/hostname"], "image holds paths outside .*/data, such as /etc/hostname.*--root"),
        ([{"a": 1}], "image holds struct"),
    ],
)
def test_a_column_that_holds_no_pictures_is_refused_by_name(column: list[Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        searched(write({"image": column, "path": ["p0.jpg"]}))


def test_a_bad_row_costs_itself(folder: Path) -> None:
    (folder / "link.jpg").symlink_to("/etc/hostname")
    paths = ["http://127.0.0.1:9/a.jpg", "p1.jpg", None, "", "../x.jpg", "link.jpg", "a\0b", "gone"]
    paths += ["x" * 10_000, "p2.jpg"]
    found, _ = searched(write({"path": paths}))
    assert [data for data, _ in found.values()] == [
        "it is a web address; pictures are not downloaded",
        b"picture 1",
        "the row names no file",
        "the row names no file",
        "it lies outside the table's folder; allow its folder by --root DIR",
        "it lies outside the table's folder; allow its folder by --root DIR",
        "its path holds a NUL character",
        "cannot be read (No such file or directory)",
        "its path has 10,000 characters",
        b"picture 2",
    ]


def test_a_root_allows_what_lies_below_it_and_nothing_else(tmp_path: Path) -> None:
    for name in ("allowed", "allowed too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"other")
    table = write({"path": ["p0.jpg", "../allowed/x.jpg", str(tmp_path / "allowed too/x.jpg")]})
    found, _ = searched(table, roots=["allowed"])
    outside = "it lies outside the table's folder; allow its folder by --root DIR"
    assert [data for data, _ in found.values()] == [b"picture 0", b"other", outside]


def test_a_planned_file_is_not_read_through_a_link_put_there_later(folder: Path) -> None:
    items = list(find([write({"path": PATHS})]))
    (folder / "p0.jpg").unlink()
    (folder / "p0.jpg").symlink_to("/etc/hostname")
    (folder / "p1.jpg").unlink()
    os.mkfifo(folder / "p1.jpg")
    link, pipe, good = contents(items)
    assert "a link leads there now" in str(link)
    assert "not a regular file but a pipe" in str(pipe)
    assert good == b"picture 2"


def test_a_damaged_page_costs_its_rows_and_what_follows_in_the_row_group() -> None:
    rows = [bytes([65 + row]) * 5000 for row in range(12)]
    table = write(
        {"image": rows, "n": list(range(12))},
        row_group_size=6,
        data_page_size=1,
        write_batch_size=2,
        compression="none",
        use_dictionary=False,
    )
    data = bytearray(Path(table).read_bytes())
    # The header of the second page follows the second row.
    start = data.index(rows[1]) + len(rows[1])
    data[start : start + 12] = b"\xff" * 12
    Path(table).write_bytes(data)
    found, passed = searched(table)
    damaged = "cannot be read (the Parquet column is damaged here or before it)"
    assert [data for data, _ in found.values()] == [*rows[:2], *[damaged] * 4, *rows[6:]]
    assert [facts for _, facts in found.values()] == [{"n": row} for row in range(12)]
    assert passed == {}


def test_a_damaged_metadata_column_costs_itself() -> None:
    columns = {"n": list(range(4)), "image": [b"a", b"b", b"c", b"d"], "m": [5, 6, 7, 8]}
    table = write(columns, compression="none", use_dictionary=False)
    data = bytearray(Path(table).read_bytes())
    data[4:20] = b"\xff" * 16
    Path(table).write_bytes(data)
    found, passed = searched(table)
    assert list(found.values()) == [
        (image, {"m": m}) for image, m in zip(columns["image"], columns["m"], strict=True)
    ]
    assert list(passed) == ["damaged columns of a table: left out from there"]


def test_metadata_leaves_as_strict_json_whatever_the_type() -> None:
    found, _ = searched(
        write(
            {
                "image": [b"a"],
                "nan": [float("nan")],
                "inf": [float("inf")],
                "day": [datetime.date(2026, 1, 2)],
                "far": pa.array([4_000_000], pa.date32()),
                "nano": pa.array([1], pa.timestamp("ns")),
                "odd": pa.array([b"caf\xe9"]).cast(pa.binary()).view(pa.string()),
                "kind": pa.array(["x"]).dictionary_encode(),
                "id": ["theirs"],
                "source": ["theirs"],
            }
        )
    )
    [(_, facts)] = found.values()
    assert facts.pop("far").startswith("12921")
    assert facts.pop("nano").startswith("1970-01-01 00:00:00.000000001")
    assert facts == {
        "nan": None,
        "inf": None,
        "day": "2026-01-02",
        "odd": "caf\ufffd",
        "kind": "x",
        "id": "theirs",
        "source": "theirs",
    }


def test_a_row_group_is_read_once_however_many_shards_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [b"%04d" % row * 1000 for row in range(600)]
    items = list(find([write({"image": rows}, row_group_size=10_000)]))
    begun: list[list[int]] = []
    original = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *arguments: Any, **options: Any) -> Any:
        begun.append(options["row_groups"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    reader = Reader()
    read: list[object] = []
    for first in range(0, 600, 100):
        for _, call in reader.chunks(items[first : first + 100], 16):
            read += call()
    assert read == rows
    assert begun == [[0]]
    # Back to an earlier shard, as after a lost worker: one more reading, from the start.
    [(_, call)] = reader.chunks(items[5:10], 16)
    assert call() == rows[5:10]
    assert len(begun) == 2
    reader.close()


def test_a_picture_over_the_limit_is_refused_by_its_length(folder: Path) -> None:
    (folder / "big.jpg").write_bytes(b"x" * 2001)
    rows = [b"x" * 2001, b"x" * 2000]
    told = "it has 2,001 bytes; the limit is 2,000 (UNIFIED_EMBEDDING_MAX_IMAGE_BYTES)"
    for size in (1, 2):
        items = list(find([write({"image": rows}, row_group_size=size)]))
        big, small = contents(items, 2000)
        assert str(getattr(big, "reason", "")).endswith(
            "bytes; the limit is 2,000 (UNIFIED_EMBEDDING_MAX_IMAGE_BYTES)"
        )
        assert small == rows[1]
    # So large that it is seen without reading the row.
    items = list(find([write({"image": [b"x" * 900_000]}, compression="none")]))
    [huge] = contents(items, 2000)
    assert getattr(huge, "reason", "").endswith(
        "bytes; the limit is 2,000 (UNIFIED_EMBEDDING_MAX_IMAGE_BYTES)"
    )
    [file] = contents(list(find(["data/big.jpg"])), 2000)
    assert getattr(file, "reason", "") == told


def test_a_plan_of_an_earlier_release_is_read(folder: Path) -> None:
    """Structs stood in the plan by their column's name, rows with paths as files."""
    table = write({"image": [{"bytes": b"one", "path": "x"}]})
    place = os.path.abspath(table)
    row = Item(f"{table}::0", "parquet", place, 0, 0, "image")
    file = Item("p0", "file", str(folder / "p0.jpg"))
    assert contents([row, file]) == [b"one", b"picture 0"]
    assert row.source == f"{place}::0"


def test_a_footer_whose_paths_are_not_text_costs_no_row(tmp_path: Path) -> None:
    """Found by `make fuzz`: only the estimate of a row's size reads them."""
    place = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"one", b"two"]}), place)
    data = place.read_bytes()
    damaged = bytearray(data)
    # Of its occurrences in the footer, the last but Arrow's own copy of the schema is the path.
    for at in [at for at in range(len(data) - 5) if data[at : at + 5] == b"image"]:
        damaged[:] = data
        damaged[at] = 0xFF
        place.write_bytes(damaged)
        chunk = None
        try:
            chunk = pq.ParquetFile(place).metadata.row_group(0).column(0)
            chunk.path_in_schema  # noqa: B018
        except UnicodeDecodeError:
            if chunk is not None:
                break
        except (pa.ArrowException, OSError):
            continue
    else:
        pytest.fail("no damage made the path unreadable")
    reader = ColumnReader(pq.ParquetFile(place), 0, "image")
    assert reader.take(2).to_pylist() == [b"one", b"two"]


@pytest.mark.parametrize(
    "columns",
    [
        {"path": PATHS, "n": [1, 2, 3]},
        {"image": [b"a", b"b", b"c"], "n": [1, 2, 3]},
        {"image": [{"bytes": b"a", "path": "x", "n": 1}] * 3},
    ],
    ids=["paths", "bytes", "structs"],
)
def test_a_chunk_whose_metadata_is_damaged_does_not_end_the_process(
    columns: dict[str, Any],
) -> None:
    """pyarrow aborts at `RowGroupMetaData.column` of such a chunk."""
    place = write(columns)
    data = Path(place).read_bytes()
    # In the schema, each leaf in turn becomes `required`: its chunk has levels that it should not.
    optional = [at for at in range(len(data) - 3) if data[at : at + 3] == b"\x25\x02\x18"]
    assert len(optional) >= 2
    for at in optional:
        Path(place).write_bytes(data[: at + 1] + b"\x00" + data[at + 2 :])
        child = "from source_files import searched; print(len(searched('data/t.parquet')[0]))"
        done = subprocess.run(
            [sys.executable, "-c", child],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "3\n"
