"""GIF (89a): the first frame, and what it leaves uncovered."""

import struct
from typing import Final

from PIL import Image

from unified_embedding.image.container import Container, Finish, corrupt

_MAX_BLOCKS: Final = 100_000


def parse(data: bytes) -> Container:
    """Read a GIF up to its first frame. Raises ImageError."""
    if len(data) < 13:
        raise corrupt("GIF", "it ends within its header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _table(flags)
    head = memoryview(data)[:at]
    control = b""
    blocks = 0
    while blocks < _MAX_BLOCKS:
        kind = data[at : at + 1]
        blocks += 1
        if kind == b",":
            break
        if kind in (b"", b";"):
            raise corrupt("GIF", "it holds no frame")
        if kind == b"!":
            label = data[at + 1 : at + 2]
            if label == b"\xf9" and data[at + 2 : at + 3] == b"\x04":
                control = b"!\xf9\x04" + data[at + 3 : at + 7] + b"\0"
            at, count = _after_blocks(data, at + 2)
            blocks += count
        else:
            at += 1
    else:
        raise corrupt("GIF", f"more than {_MAX_BLOCKS:,} blocks before its first frame")
    if len(data) < at + 11:
        raise corrupt("GIF", "it ends within its first frame")
    left, top, across, down, flags = struct.unpack_from("<4HB", data, at + 1)
    width, height = max(width, left + across), max(height, top + down)
    # Twelve bits a pixel are the most that LZW needs; a decoder would follow empty codes for ever.
    end = at + 11 + _table(flags) + 2 * across * down + 65_536
    frame = (left, top, left + across, top + down)
    return Container(
        "GIF",
        width,
        height,
        [head, control, memoryview(data)[at:end], b"\0;"],
        finish=None if frame == (0, 0, width, height) else _on_white(frame),
    )


def _table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _after_blocks(data: bytes, at: int) -> tuple[int, int]:
    """Where the blocks that start at `at` end, and how many there were."""
    for count in range(_MAX_BLOCKS):
        size = data[at] if at < len(data) else 0
        at += 1 + size
        if size == 0:
            return at, count
    raise corrupt("GIF", f"more than {_MAX_BLOCKS:,} blocks of text")


def _on_white(frame: tuple[int, int, int, int]) -> Finish:
    def finish(image: Image.Image) -> Image.Image:
        mode = "RGBA" if "transparency" in image.info else "RGB"
        canvas = Image.new(mode, image.size, (255,) * len(mode))
        canvas.paste(image.crop(frame).convert(mode), frame[:2])
        return canvas

    return finish
