"""Whatever a source holds: each picture is an item or is named, and only InputError is raised."""

import csv
import io
import json
import os
import shutil
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from unified_embedding.corpus.sources import Item, PassedOver, Reader, Unreadable, find
from unified_embedding.errors import InputError

NAMES = st.text(st.sampled_from("aé.?[#:*% \udce9\n"), min_size=1, max_size=8).filter(
    lambda name: name.strip(".") and not name.startswith(".")
)
TEXT = st.text(st.sampled_from('ab,"\n\r;\t\0é'), max_size=12)
ENDINGS = st.sampled_from([".jpg", ".PNG", ".avif", ".json", ".x.json", ".txt", ".cls", ".md", ""])


def search(*inputs: str) -> tuple[list[tuple[Item, bytes | Unreadable]], PassedOver]:
    """Items with contents; all that is kept of them can be written as UTF-8 and strict JSON."""
    passed = PassedOver()
    items = list(find(inputs, passed=passed))
    with closing(Reader()) as reader:
        contents = reader.read(items)
    for item, data in zip(items, contents, strict=True):
        json.loads(item.metadata, parse_constant=int)
        json.dumps([*vars(item).values(), item.source], ensure_ascii=False).encode()
        if isinstance(data, Unreadable):
            data.reason.encode()
    passed.to_json().encode()
    return list(zip(items, contents, strict=True)), passed


def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="sources"))


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "./", "d.e/"]), NAMES, ENDINGS, st.binary(max_size=30)),
        max_size=8,
    )
)
def test_every_member_of_a_tar_is_an_item_or_told(
    members: list[tuple[str, str, str, bytes]],
) -> None:
    top = folder()
    written = []
    with tarfile.open(top / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for place, name, ending, data in members:
            info = tarfile.TarInfo(place + name + ending)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            if ending in (".jpg", ".PNG", ".avif"):
                written.append(data)
    try:
        found, passed = search(str(top / "x.tar"))
        repeated = passed.counts.get(
            "pictures named a second time, or under a name that was taken", 0
        )
        # The first of two members with one name is the item.
        assert len(found) + repeated == len(written)
        assert [data for _, data in found] == written or repeated
    except InputError:
        assert not written
    finally:
        shutil.rmtree(top)


@given(st.data())
def test_a_damaged_tar_costs_rows_and_never_the_run(data: st.DataObject) -> None:
    top = folder()
    with tarfile.open(top / "x.tar", "w") as archive:
        for number in range(4):
            for ending, body in ((".jpg", b"%d" % number * 40), (".json", b'{"a": 1}')):
                info = tarfile.TarInfo(f"{number}{ending}")
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
    whole = bytearray((top / "x.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 9 * 512))
        whole[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    del whole[data.draw(st.integers(0, len(whole))) :]
    (top / "x.tar").write_bytes(whole)
    (top / "other.jpg").write_bytes(b"other")
    found, _ = search(str(top))
    assert (top / "other.jpg").read_bytes() in [one for _, one in found]
    try:
        search(str(top / "x.tar"))
    except InputError:
        pass
    finally:
        shutil.rmtree(top)


COLUMNS = {
    "bytes": st.one_of(st.none(), st.binary(max_size=20)),
    "path": st.one_of(
        st.none(), st.sampled_from(["0.jpg", "../0.jpg", "http://x/0.jpg", "n\0"]), TEXT
    ),
    "struct": st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {
                "bytes": st.one_of(st.none(), st.binary(max_size=20)),
                "path": st.one_of(st.none(), st.just("0.jpg"), TEXT),
            }
        ),
    ),
}
TYPES = {
    "bytes": [pa.binary(), pa.large_binary(), pa.binary_view()],
    "path": [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    "struct": [pa.struct([("bytes", pa.binary()), ("path", pa.string())])],
}
FACTS = {
    "f": (pa.float64(), st.floats()),
    "t": (pa.timestamp("ns"), st.integers(-(2**62), 2**62)),
    "d": (pa.date32(), st.integers(-(2**30), 2**30)),
    "u": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "n": (pa.decimal128(5, 2), st.decimals(-99, 99, places=2)),
    "s": (pa.string(), TEXT),
    "l": (pa.list_(pa.int8()), st.lists(st.integers(0, 9), max_size=2)),
}


@given(st.data(), st.sampled_from(list(COLUMNS)), st.integers(0, 12), st.integers(1, 5))
def test_every_row_of_a_parquet_file_is_an_item_or_told(
    data: st.DataObject, kind: str, rows: int, group: int
) -> None:
    top = folder()
    (top / "0.jpg").write_bytes(b"a file")
    exactly = {"min_size": rows, "max_size": rows}
    values = data.draw(st.lists(COLUMNS[kind], **exactly))
    columns: dict[str, Any] = {"image": pa.array(values, data.draw(st.sampled_from(TYPES[kind])))}
    for name in data.draw(st.sets(st.sampled_from(list(FACTS)))):
        of, strategy = FACTS[name]
        columns[name] = pa.array(data.draw(st.lists(st.one_of(st.none(), strategy), **exactly)), of)
    pq.write_table(pa.table(columns), top / "t.parquet", row_group_size=group)
    damage = data.draw(st.booleans())
    if damage:
        whole = bytearray((top / "t.parquet").read_bytes())
        at = data.draw(st.integers(4, len(whole) - 8))
        whole[at : at + 6] = data.draw(st.binary(min_size=6, max_size=6))
        (top / "t.parquet").write_bytes(whole)
    try:
        found, passed = search(str(top / "t.parquet"))
        repeated = 0 if kind == "bytes" else sum(passed.counts.values())
        assert damage or len(found) <= rows <= len(found) + repeated
        if kind == "bytes" and not damage:
            told = Unreadable("the row holds no picture (null)")
            assert [one for _, one in found] == [told if v is None else v for v in values]
        for _, one in found:
            assert damage or isinstance(one, Unreadable) or one in (b"a file", *_held(values))
    except InputError:
        # Of texts that are no paths, of no rows, or of a damaged file.
        assert damage or not rows or kind == "path"
    finally:
        shutil.rmtree(top)


def _held(values: list[Any]) -> list[bytes]:
    bodies = [value["bytes"] if isinstance(value, dict) else value for value in values]
    return [body for body in bodies if isinstance(body, bytes)]


@given(st.lists(st.lists(TEXT, max_size=5), max_size=6), st.binary(max_size=40), st.booleans())
def test_a_table_of_any_text_costs_no_picture(
    rows: list[list[str]], tail: bytes, headed: bool
) -> None:
    top = folder()
    text = io.StringIO()
    csv.writer(text).writerows([["file_name", "a", "b"], ["0.jpg", "x", "y"]] if headed else [])
    csv.writer(text, escapechar="\\").writerows(rows)
    (top / "metadata.csv").write_bytes(text.getvalue().encode() + tail)
    (top / "metadata.jsonl").write_bytes(b'{"file_name": "1.jpg", "c": NaN}\n' + tail)
    for number in range(2):
        (top / f"{number}.jpg").write_bytes(b"%d" % number)
    found, _ = search(str(top))
    assert [one for _, one in found] == [b"0", b"1"]
    if headed and b"0.jpg" not in tail and not any("0.jpg" in row for row in rows):
        # Later rows and what follows them change nothing in it.
        assert json.loads(found[0][0].metadata) == {"a": "x", "b": "y"}
    shutil.rmtree(top)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=5, unique=True))
def test_files_of_any_name_are_found_and_read_again(names: list[tuple[str, str]]) -> None:
    top = folder()
    written = set()
    for inner, name in names:
        try:
            os.makedirs(top / inner, exist_ok=True)
            path = top / inner / f"{name}.jpg"
            path.write_bytes(os.fsencode(path))
            written.add(os.fsencode(path))
        except FileExistsError:
            continue
    found, passed = search(str(top))
    # Two names that are written alike are told.
    assert len(found) + sum(passed.counts.values()) == len(written)
    assert {one for _, one in found} <= written
    shutil.rmtree(top)
