"""Rendered pictures of products for training and evaluation: what is rendered, and how.

Training rooms and test rooms are made of different kinds of surfaces, and every picture has its
own seed, which names its split.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from unified_embedding.datasets.splits import Split
from unified_embedding.rendering.furniture import Product
from unified_embedding.rendering.mesh import Mesh, load_mesh
from unified_embedding.rendering.photograph import encode
from unified_embedding.rendering.shots import SIZES, camera_shot, jittered, scene_shot, seeded
from unified_embedding.rendering.surfaces import TESTING, TRAINING, Kinds, OneRoom

RECIPE: Final = "r2"
"""Part of the file names; raise it when the same seed gives another picture than before."""

TRAINING_SIZES: Final = tuple((width * 3 // 4, height * 3 // 4) for width, height in SIZES)
"""Width and height of training and validation shots; test shots have `SIZES`."""
VIEWS: Final = 3
"""Training shots taken in one room."""
PER_SCENE: Final = 4
SIZE_RATIO: Final = 2.5
"""Products of a scene differ by at most this factor in their longest side."""

_CROP_QUALITY: Final = 92
_DECOR: Final[Mapping[Split, Kinds]] = {
    "train": TRAINING,
    "validation": TRAINING,
    "test": TESTING,
}


@dataclass(frozen=True)
class Shots:
    """Camera shots `first` to `first + count - 1` of one product, taken in one room."""

    product: Product
    split: Split
    first: int
    count: int

    @property
    def paths(self) -> list[str]:
        """Where the pictures go."""
        return [shot_path(self.split, self.product.id, self.first + i) for i in range(self.count)]

    def render(self, libraries: Path) -> dict[str, bytes]:
        """The pictures, path -> JPEG."""
        mesh = _load(self.product, libraries)
        surfaces = seeded(self.split, "room", self.product.id, self.first)
        room = OneRoom(_DECOR[self.split], surfaces)
        sizes = SIZES if self.split == "test" else TRAINING_SIZES
        pictures = {}
        for number, path in enumerate(self.paths, self.first):
            rng = seeded(self.split, "shot", self.product.id, number)
            size = sizes[int(rng.integers(len(sizes)))]
            pictures[path] = camera_shot(mesh, self.product.elevation, rng, size, room)
        return pictures


@dataclass(frozen=True)
class SceneTask:
    """Scene `number` of a split, and the crop of each product that is seen in it."""

    products: tuple[Product, ...]
    split: Split
    number: int

    @property
    def paths(self) -> list[str]:
        """Where the picture and the list of its crops go."""
        return [scene_path(self.split, self.number, suffix) for suffix in ("jpg", "json")]

    def render(self, libraries: Path) -> dict[str, bytes]:
        """The scene, its crops as JPEG, and a JSON list of {"path", "product"}."""
        rng = seeded(self.split, "scene", self.number)
        meshes = [_load(product, libraries) for product in self.products]
        elevations = [product.elevation for product in self.products]
        scene = scene_shot(meshes, elevations, rng, _DECOR[self.split])
        image = Image.open(io.BytesIO(scene.jpeg)).convert("RGB")
        pictures, listed = {self.paths[0]: scene.jpeg}, []
        for product, box in zip(self.products, scene.boxes, strict=True):
            if box is None:
                continue
            crop = image.crop(jittered(box, scene.size, rng))
            path = crop_path(self.split, self.number, product.id)
            pictures[path] = encode(np.asarray(crop), _CROP_QUALITY)
            listed.append({"path": path, "product": product.id})
        pictures[self.paths[1]] = json.dumps(listed, indent=1).encode()
        return pictures


Task = Shots | SceneTask


def shot_path(split: Split, product: str, number: int) -> str:
    """Path of a camera shot below the folder of pictures."""
    return f"shots-{RECIPE}/{split}/{product}-{number:02}.jpg"


def scene_path(split: Split, number: int, suffix: str) -> str:
    """Path of a scene or of its list of crops."""
    return f"scenes-{RECIPE}/{split}/{number:04}.{suffix}"


def crop_path(split: Split, number: int, product: str) -> str:
    """Path of one product's crop of a scene."""
    return f"crops-{RECIPE}/{split}/{number:04}-{product}.jpg"


def crops_of(listing: bytes) -> list[dict[str, Any]]:
    """The crops that a scene's JSON lists: "path" and "product" of each."""
    crops: list[dict[str, Any]] = json.loads(listing)
    return crops


def shot_tasks(products: Sequence[Product], split: Split, count: int) -> list[Shots]:
    """`count` shots of each product; in training `VIEWS` in one room, else each in its own.

    Round by round, so that a run that is cut short has some shots of every product.
    """
    views = VIEWS if split == "train" else 1
    return [
        Shots(product, split, first, min(views, count - first))
        for first in range(0, count, views)
        for product in products
    ]


def scene_tasks(products: Sequence[Product], split: Split, count: int) -> list[SceneTask]:
    """`count` scenes of products of similar size; the products take turns at leading one."""
    order = seeded(split, "leaders").permutation(len(products))
    tasks = []
    for number in range(count):
        leader = products[order[number % len(products)]]
        others = [p for p in products if p.id != leader.id and _similar(p, leader)]
        rng = seeded(split, "cast", number)
        cast = rng.choice(len(others), min(PER_SCENE - 1, len(others)), replace=False)
        tasks.append(SceneTask((leader, *(others[i] for i in cast)), split, number))
    return tasks


def _similar(one: Product, other: Product) -> bool:
    ratio = max(one.size) / max(other.size)
    return 1 / SIZE_RATIO <= ratio <= SIZE_RATIO


def _load(product: Product, libraries: Path) -> Mesh:
    return load_mesh(libraries / product.model, product.size, product.rotation)
