"""What a wide colour profile does to codes and answers, ignored and converted.

Encodes every demo picture once more in Display P3 and in Adobe RGB (the same scene, as a phone
or a camera writes it), and embeds both ways with the fp32 ONNX on onnxruntime.
    .venv/bin/python bench/colour_profiles.py
"""

import argparse
import io
import struct
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from unified_embedding.codes import pack
from unified_embedding.gallery import CATALOGUE, SHOT, Gallery
from unified_embedding.image import decode, load_pixels
from unified_embedding.spec import INPUT, ONNX_FILE, OUTPUT, EmbedderSpec

ROOT = Path(__file__).resolve().parent.parent
# Columns: XYZ (D50) of red, green and blue, and the gamma; P3 has sRGB's curve, near 2.2.
SPACES = {
    "Display P3": ([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657],
                    [-0.00105, 0.04189, 0.78407]], 2.2),
    "Adobe RGB": ([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322],
                   [0.01947, 0.06087, 0.74457]], 563 / 256),
}  # fmt: skip
SRGB = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]


def main() -> None:
    """Print one line for each profile and way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gallery", type=Path, default=ROOT / "demo")
    parser.add_argument("--model", type=Path, default=ROOT / "models/unified-embedder-lite0")
    options = parser.parse_args()
    preprocessing = EmbedderSpec.load(options.model).preprocessing
    gallery = Gallery.load(options.gallery)
    session = ort.InferenceSession(
        str(options.model / ONNX_FILE), providers=["CPUExecutionProvider"]
    )

    def codes(pictures: list[bytes]) -> NDArray[np.uint8]:
        pixels = (load_pixels(data, preprocessing)[None] for data in pictures)
        return pack(np.concatenate([session.run([OUTPUT], {INPUT: p})[0] for p in pixels]))

    scenes = [decode(picture.path.read_bytes()) for picture in gallery.pictures]
    plain = codes([_png(scene) for scene in scenes])
    roles = np.array([picture.role for picture in gallery.pictures])
    products = np.array([picture.product for picture in gallery.pictures])
    shots, catalogue = roles == SHOT, roles == CATALOGUE
    answers = _nearest(plain[shots], plain[catalogue])
    right = (products[catalogue][answers] == products[shots]).mean()
    print(f"{len(scenes)} pictures, {shots.sum()} queries; in sRGB {right:.1%} right at 1")
    for name, (primaries, gamma) in SPACES.items():
        wide = [_in_space(scene, np.array(primaries), gamma) for scene in scenes]
        profile = _profile(primaries, gamma)
        for way, files in (
            ("ignored", [_png(image) for image in wide]),
            ("with the profile", [_png(image, profile) for image in wide]),
        ):
            found = codes(files)
            flipped = np.unpackbits(found ^ plain, axis=1).mean(axis=1)
            theirs = _nearest(found[shots], plain[catalogue])
            right = (products[catalogue][theirs] == products[shots]).mean()
            print(
                f"{name}, {way}: {flipped.mean():.2%} of the bits differ (worst picture "
                f"{flipped.max():.1%}), {(theirs != answers).mean():.1%} of the first answers, "
                f"{right:.1%} right at 1"
            )
            sys.stdout.flush()


def _nearest(queries: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.intp]:
    bits = [np.unpackbits(side, axis=1).astype(np.float32) * 2 - 1 for side in (queries, codes)]
    return np.asarray(np.argmax(bits[0] @ bits[1].T, axis=1))


def _in_space(image: Image.Image, primaries: NDArray[np.float64], gamma: float) -> Image.Image:
    level = np.asarray(image) / 255
    light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    wide = np.clip(light @ (np.linalg.inv(primaries) @ np.array(SRGB)).T, 0, 1)
    return Image.fromarray(np.round(255 * wide ** (1 / gamma)).astype(np.uint8))


def _profile(primaries: list[list[float]], gamma: float) -> bytes:
    """A matrix profile, as small as ICC.1 allows."""
    curve = b"curv" + struct.pack(">4xIHxx", 1, round(gamma * 256))
    data = [
        b"XYZ " + struct.pack(">4x3i", *(round(row[c] * 65536) for row in primaries))
        for c in range(3)
    ] + [curve] * 3
    names = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
    start = 132 + 12 * len(names)
    table, body = struct.pack(">I", len(names)), b""
    for name, tag in zip(names, data, strict=True):
        table += struct.pack(">4sII", name, start + len(body), len(tag))
        body += tag
    head = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"", 0x02100000, b"mntr", b"RGB ",
                       b"XYZ ", b"acsp")  # fmt: skip
    return head.ljust(128, b"\0") + table + body


def _png(image: Image.Image, profile: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=profile, compress_level=1)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
