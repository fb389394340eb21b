"""What is fuzzed inside one process: for each target, how a case is made and what must hold.

A case is judged by what the project promises: an answer, or an error of the project's own that a
user can read. Anything else that is raised, and a process that dies, is a breach.
"""

import contextlib
import csv
import io
import json
import math
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn

import numpy as np

from unified_embedding import deadline
from unified_embedding.checkout import ROOT
from unified_embedding.errors import Breach, CodeIndexError, ImageError, Malformed
from unified_embedding.fuzzing import mutation
from unified_embedding.image import Box, Limits, Preprocessing, load_pixels, parse_crops

SEEDS: Final = ROOT / "fuzz" / "seeds"
CROPS: Final = ("0.1,0.2,0.5,1", "0,0,1,1", "0.25,0.25,0.375,0.375;;0,0,1,1", "1e-3,0,1,1")
MOMENTS: Final = ("1790000000", "1790000000.125", "1e10", "0", "-5")
LIMITS: Final = Limits(max_bytes=2_000_000, max_pixels=1_000_000)
# A picture of a million pixels costs some 30 ms and 10 MB; three buffers of it are 12 MB.
_CPU_S: Final = 5.0
_MEMORY_KB: Final = 300_000
_LONGEST_MESSAGE: Final = 500
_INDEXED: Final = 64


@dataclass(frozen=True)
class Case:
    """One input: the bytes of a file or message, and what goes with them."""

    data: bytes
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """`make` draws a case; `check` returns "answered" or "refused", or raises."""

    make: Callable[[Random], Case]
    check: Callable[[Case], str]


def pictures() -> list[bytes]:
    """The good pictures."""
    suffixes = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".avif")
    return [path.read_bytes() for path in sorted(SEEDS.iterdir()) if path.suffix in suffixes]


def _make_picture(random: Random) -> Case:
    crop = [random.random() for _ in range(4)] if random.random() < 0.3 else None
    resize = random.choice(("letterbox", "center_crop"))
    return Case(mutation.picture(pictures(), random), {"crop": crop, "resize": resize})


def _check_picture(case: Case) -> str:
    crop, box = case.parameters.get("crop"), None
    if crop:
        (x0, x1), (y0, y1) = sorted(crop[:2]), sorted(crop[2:])
        box = Box(x0, y0, x1, y1)
    how = Preprocessing(size=32, resize=case.parameters.get("resize", "letterbox"))
    began, before = time.process_time(), _peak_kb()
    try:
        pixels = load_pixels(case.data, how, box, LIMITS)
    except ImageError as error:
        _readable(error)
        outcome = "refused"
    else:
        outcome = "answered"
        if pixels.shape != (32, 32, 3) or pixels.dtype != np.uint8:
            raise Breach(f"answered {pixels.dtype} {pixels.shape}")
        # Pixels that no decoder wrote show as a second answer that differs.
        if not np.array_equal(pixels, load_pixels(case.data, how, box, LIMITS)):
            raise Breach("two answers for one picture")
    took = time.process_time() - began
    if took > _CPU_S:
        raise Breach(f"{took:.1f} s of CPU for at most a million pixels")
    if _peak_kb() - before > _MEMORY_KB:
        raise Breach(f"{(_peak_kb() - before) // 1000} MB for at most a million pixels")
    return outcome


def _check_crop(case: Case) -> str:
    try:
        boxes = parse_crops(case.data.decode(), case.parameters["count"])
    except ImageError as error:
        _readable(error)
        return "refused"
    if len(boxes) != case.parameters["count"]:
        raise Breach(f"{len(boxes)} boxes for {case.parameters['count']} pictures")
    for box in filter(None, boxes):
        if parse_crops(str(box), 1) != [box]:
            raise Breach(f"{box!r} travels as {box}")
    return "answered"


def _check_deadline(case: Case) -> str:
    value: Any = case.data.decode()
    if case.parameters["typed"]:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    try:
        left = deadline.left({"deadline": value})
    except Malformed as error:
        _readable(error)
        return "refused"
    if not math.isfinite(left):
        raise Breach(f"{left} s are left")
    return "answered"


def _make_tar(random: Random) -> Case:
    stems = (b"a", b"b", b"./c", b"d/e", b"._a", b"x.y/z", b"\xff\xfe", b"n" * 99, b"a\x00b", b"..")
    suffixes = (b".jpg", b".png", b".json", b".txt", b".cls", b".any.json", b".tif", b"", b".JPG")
    bodies = (b"picture", b'{"a": 1}', b"[1, 2]", b"null", b"3", b"NaN", b'{"x": NaN, "y": 1e999}',
              b'{"s": "\\ud800"}', b'{"a": {"b": [null]}}', b"\xff\xfe", b"", b'"text"',
              b"[" * 5000, b'{"source": "/etc/passwd", "id": 3}', b"9" * 5000)  # fmt: skip
    members = [
        (random.choice(stems) + random.choice(suffixes), random.choice(bodies))
        for _ in range(random.randrange(1, 8))
    ]
    data = mutation.archive(members, random)
    if random.random() < 0.3:
        data = mutation.damaged(data, [(SEEDS / "shard.tar").read_bytes()], random)
    return Case(data, {"name": "in.tar"})


def _make_parquet(random: Random) -> Case:
    files = [(SEEDS / name).read_bytes() for name in ("bytes.parquet", "paths.parquet")]
    data = _table(random) if random.random() < 0.5 else random.choice(files)
    for _ in range(random.randrange(0, 3)):
        data = mutation.damaged(data, files, random)
    return Case(data, {"name": "in.parquet"})


def _table(random: Random) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["p0.jpg", None, "", "/etc/passwd", "http://x/y.jpg", "\x00", "../p0.jpg", "é" * 300]
    blobs = [b"one", None, b""]
    columns: list[Any] = [
        pa.array(texts),
        pa.array(texts).dictionary_encode(),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string_view()),
        pa.array(blobs * 3, pa.binary())[: len(texts)],
        pa.array(blobs * 3, pa.large_binary())[: len(texts)],
        pa.array(blobs * 3).dictionary_encode()[: len(texts)],
        pa.array([{"bytes": None, "path": one} for one in texts]),
        pa.array([{"bytes": b"x", "path": one} for one in texts]),
        pa.array([{"path": one} for one in texts]),
        pa.array([{"other": 1}] * len(texts)),
        pa.array([[1, 2]] * len(texts)),
        pa.array([1.5, math.nan, math.inf, None] * 2),
        pa.array(range(len(texts))),
        pa.nulls(len(texts)),
        pa.array([10**14] * len(texts), pa.timestamp("s")),
        pa.array([b"\xff\xfe"] * len(texts)),
    ]
    names = ("image", "path", "file_name", "bytes", "jpg", "title", "source", "id", "", "é")
    chosen = random.sample(names, random.randrange(1, 5))
    table = pa.table({name: random.choice(columns) for name in chosen})
    written = io.BytesIO()
    pq.write_table(table, written, row_group_size=random.choice((1, 3, 100)))
    return written.getvalue()


def _make_csv(random: Random) -> Case:
    rows = [["file_name", "title", "price"], ["p0.jpg", "a, b", "1"], ["p1.jpg", "c", "2"]]
    odd = ("p0.jpg", "", '"', "a\nb", "x" * 200_000, "\x00", "../p1.jpg", "/etc/passwd", "source",
           "é", "file_name", "image", "\r")  # fmt: skip
    for _ in range(random.randrange(1, 4)):
        row = random.choice(rows)
        row.insert(random.randrange(len(row) + 1), random.choice(odd))
    text = io.StringIO()
    csv.writer(text, quoting=random.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))).writerows(rows)
    data = text.getvalue().encode()
    if random.random() < 0.4:
        data = mutation.damaged(data, [data], random)
    return Case(data, {"name": "metadata.csv"})


def _check_source(case: Case) -> str:
    from unified_embedding.corpus.sources import Reader, Unreadable, find
    from unified_embedding.errors import InputError

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for picture in ("p0.jpg", "p1.jpg"):
            shutil.copyfile(SEEDS / "baseline.jpg", folder / picture)
        (folder / case.parameters["name"]).write_bytes(case.data)
        try:
            items = list(find([name]))
        except InputError as error:
            _readable(error)
            return "refused"
        with contextlib.closing(Reader()) as reader:
            contents = reader.read(items)
        for item, data in zip(items, contents, strict=True):
            item.id.encode()
            item.metadata.encode()
            json.loads(item.metadata, parse_constant=_not_json).keys()
            if isinstance(data, Unreadable):
                _readable(ValueError(data.reason))
            elif not isinstance(data, bytes):
                raise Breach(f"read as {type(data).__name__}: {item.id[:80]}")
    return "answered"


def _not_json(word: str) -> NoReturn:
    raise Breach(f"{word} is not JSON")


_INDEXES: dict[str, Path] = {}


def _index(kind: str) -> Path:
    """A saved index of that kind, built once in this process."""
    from unified_embedding.index import Batch, CodeIndex, Origin, Settings

    if kind not in _INDEXES:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-index-")) / "index"
        codes = np.random.default_rng(0).integers(0, 256, (_INDEXED, 16), dtype=np.uint8)
        names = [f"row {number}" for number in range(_INDEXED)]
        batch = Batch(names, codes, {"number": list(range(_INDEXED))})
        origin = Origin.parse(_ORIGIN)
        settings = Settings(kind=kind)  # type: ignore[arg-type]
        CodeIndex.build(folder, [batch], origin, 128, settings=settings)
        _INDEXES[kind] = folder
    return _INDEXES[kind]


_ORIGIN: Final = "0123456789ab test-fp32-0123456789ab"


def _make_index(random: Random) -> Case:
    kind = random.choice(("flat", "ivf", "hnsw"))
    file = random.choice(sorted(path for path in _index(kind).iterdir() if path.stat().st_size))
    data = file.read_bytes()
    for _ in range(random.choice((1, 1, 3))):
        data = mutation.damaged(data, [data], random)
    return Case(data, {"kind": kind, "file": file.name})


def _check_index(case: Case) -> str:
    """A damaged index is refused, or gives what the whole one gives."""
    from unified_embedding.index import CodeIndex, Origin

    whole = _index(case.parameters["kind"])
    codes = np.random.default_rng(0).integers(0, 256, (_INDEXED, 16), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "index"
        shutil.copytree(whole, folder)
        (folder / case.parameters["file"]).write_bytes(case.data)
        try:
            index = CodeIndex.open(folder, check=True)
            found = index.search(codes[:8], index.header.origin, k=1)
            answers = [found.hits(row) for row in range(8)]
        except CodeIndexError as error:
            _readable(error)
            return "refused"
        truth = CodeIndex.open(whole).search(codes[:8], Origin.parse(_ORIGIN), k=1)
        if answers != [truth.hits(row) for row in range(8)]:
            raise Breach(f"another answer than the whole index gives, and no error: {answers[0]}")
    return "answered"


def _readable(error: Exception) -> None:
    """An error that a user can read: one short sentence or two, no traceback."""
    told = str(error)
    if not told or "Traceback" in told:
        raise Breach(f"an error without words: {error!r}") from error
    if len(told) > _LONGEST_MESSAGE:
        raise Breach(f"an error of {len(told):,} characters: {told[:100]!r}") from error
    told.encode()


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


TARGETS: Final[dict[str, Target]] = {
    "decode": Target(_make_picture, _check_picture),
    "crop": Target(
        lambda random: Case(
            mutation.text(CROPS, random).encode(), {"count": random.choice((1, 3, 16))}
        ),
        _check_crop,
    ),
    "deadline": Target(
        lambda random: Case(
            mutation.text((*MOMENTS, "true", "[1]", '{"a":1}', "null"), random).encode(),
            {"typed": random.random() < 0.5},
        ),
        _check_deadline,
    ),
    "tar": Target(_make_tar, _check_source),
    "parquet": Target(_make_parquet, _check_source),
    "csv": Target(_make_csv, _check_source),
    "index": Target(_make_index, _check_index),
}
