"""Fetch, rasterise, render and describe: everything behind `make data`."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unified_embedding.datasets import emoji, pictures, sources, splits
from unified_embedding.datasets.labels import camera_categories, shop_classes
from unified_embedding.datasets.manifest import COLUMNS, Row, check_rows, write_manifest
from unified_embedding.datasets.sources import EMOJI, FURNITURE, Source
from unified_embedding.datasets.splits import Split
from unified_embedding.datasets.store import Store
from unified_embedding.datasets.task_table import BROWSE, CAMERA, SHOP, SHOP_KIND
from unified_embedding.errors import DataError
from unified_embedding.rendering import furniture
from unified_embedding.rendering.furniture import CATALOG, LICENSES, Product, credits_table
from unified_embedding.whole_files import write_whole

MANIFEST: Final = "manifest.csv"
ATTRIBUTION: Final = "ATTRIBUTION.md"
_PICTURES: Final = "pictures"
_EMOJI_BATCH: Final = 50


@dataclass(frozen=True)
class Plan:
    """How much is rendered.

    Attributes:
        shots: camera shots per product, by split.
        scenes: scenes of several products, by split.
    """

    shots: Mapping[Split, int]
    scenes: Mapping[Split, int]


def plan(train_shots: int = 6, train_scenes: int = 600) -> Plan:
    """The stand-in data; validation and test are the same for every amount of training data."""
    return Plan(
        shots={"test": 4, "validation": 4, "train": train_shots},
        scenes={"test": 300, "validation": 120, "train": train_scenes},
    )


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        manifest: the manifest it wrote, or None when no task could be prepared.
        tasks: tasks in the manifest.
        made: files made or repaired.
        downloaded: packages downloaded or repaired.
        missing: why a task is missing, one sentence each.
    """

    manifest: Path | None
    tasks: tuple[str, ...]
    made: int
    downloaded: int
    missing: tuple[str, ...]


def prepare(home: Path, wanted: Plan, jobs: int, console: Console) -> Report:
    """Prepare all that can be prepared under `home`; what is there and intact is kept.

    Args:
        home: the cache, see `store.data_home`.
        wanted: how much to render.
        jobs: processes that render; 1 renders in this one.
        console: where progress goes.

    Raises:
        DataError: the prepared data contradict the committed splits.
    """
    store = Store(home / _PICTURES)
    rows: list[dict[str, str]] = []
    credit: list[str] = []
    missing: list[str] = []
    made = downloaded = 0
    for part in (partial(_browse, home, store), partial(_products, home, store, wanted, jobs)):
        try:
            done = part(console)
        except DataError as error:
            missing.append(str(error))
            continue
        rows += done.rows
        credit.append(done.credit)
        made += done.made
        downloaded += done.downloaded
    if not rows:
        return Report(None, (), made, downloaded, tuple(missing))
    check_rows(rows, MANIFEST)
    write_manifest(home / MANIFEST, rows)
    write_whole(home / ATTRIBUTION, "\n".join(["# Attribution", "", *credit]))
    tasks = tuple(sorted({row["task"] for row in rows}))
    return Report(home / MANIFEST, tasks, made, downloaded, tuple(missing))


@dataclass(frozen=True)
class _Part:
    rows: list[dict[str, str]]
    credit: str
    made: int
    downloaded: int


def _browse(home: Path, store: Store, console: Console) -> _Part:
    """Emoji: fetch, rasterise, and one row per concept and design."""
    fetched = {design: _fetched(home, source, console) for design, source in EMOJI.items()}
    drawings = emoji.read_designs({design: path for design, (path, _) in fetched.items()})
    wanted = {
        emoji_path(design, concept, drawing): drawing
        for design, icons in drawings.items()
        for concept, drawing in icons.items()
    }
    missing = store.missing(wanted)
    with _progress(console) as progress:
        for start in progress.track(
            range(0, len(missing), _EMOJI_BATCH), description="rasterising emoji"
        ):
            batch = missing[start : start + _EMOJI_BATCH]
            store.add({path: emoji.rasterise(wanted[path]) for path in batch})
    credit = "\n".join(f"- {design}: {_credit(source)}" for design, source in EMOJI.items())
    return _Part(
        rows=_emoji_rows(drawings, store),
        credit=f"Emoji designs:\n\n{credit}\n",
        made=len(missing),
        downloaded=sum(new for _, new in fetched.values()),
    )


def emoji_path(design: str, concept: str, drawing: str | bytes) -> str:
    """Path of one emoji below the folder of pictures."""
    return f"emoji/{design}/{concept}.{emoji.suffix(drawing)}"


def _emoji_rows(
    drawings: Mapping[str, Mapping[str, str | bytes]], store: Store
) -> list[dict[str, str]]:
    """One row per design and concept; a design's equal pictures of one class count once."""
    rows = []
    for design, icons in drawings.items():
        seen: set[tuple[str, str]] = set()
        for concept in splits.emoji_concepts():
            if concept.name not in icons:
                continue
            if design == emoji.NEVER_TRAINED and concept.split != "test":
                continue
            path = emoji_path(design, concept.name, icons[concept.name])
            picture = concept.label, store.checksum(path)
            if picture in seen:
                continue
            seen.add(picture)
            rows.append(
                {
                    "image": f"{_PICTURES}/{path}",
                    "task": BROWSE.name,
                    BROWSE.instance: concept.label,
                    "domain": design,
                    "split": concept.split,
                    "identity": concept.label,
                    "cluster": concept.family,
                }
            )
    return [_complete(row) for row in rows]


def _products(home: Path, store: Store, wanted: Plan, jobs: int, console: Console) -> _Part:
    """Furniture: fetch, catalogue pictures, camera shots, scenes, and their rows."""
    package, new = _fetched(home, FURNITURE, console)
    with _Unpacked(package, home) as libraries:
        made = _catalogue(store, libraries)
        products = furniture.read_products(store.folder / "libraries")
        split = splits.product_splits()
        tasks = _tasks(products, split, wanted)
        todo = [task for task in tasks if _unfinished(task, store)]
        with _progress(console) as progress:
            rendered = _rendered(todo, libraries, jobs) if todo else iter(())
            for files in progress.track(rendered, total=len(todo), description="rendering"):
                made += len(files)
                store.add(files)
    scenes = [task for task in tasks if isinstance(task, pictures.SceneTask)]
    shots = [task for task in tasks if isinstance(task, pictures.Shots)]
    rows = _product_rows(products, split, shots, _crops(scenes, store))
    credit = f"3D models and catalogue pictures: {_credit(FURNITURE)}\n\n"
    return _Part(rows, credit + credits_table(products), made, int(new))


class _Unpacked:
    """The furniture libraries, unpacked when first asked for and removed at the end."""

    def __init__(self, package: Path, home: Path) -> None:
        self._package = package
        self._folder = home / ".libraries"
        self._remove()  # What a killed run left behind may be incomplete.

    def __enter__(self) -> "_Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    @property
    def path(self) -> Path:
        """The folder with the libraries in it."""
        if not self._folder.exists():
            furniture.unpack(self._package, self._folder)
        return self._folder

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _catalogue(store: Store, libraries: _Unpacked) -> int:
    """Copy the libraries' tables and catalogue pictures; the number of files copied."""
    tables = [f"libraries/{library}/{CATALOG}" for library in LICENSES]
    missing = store.missing(tables)
    if missing:
        files = {path: (libraries.path / Path(*Path(path).parts[1:])) for path in missing}
        store.add({path: file.read_bytes() for path, file in files.items()})
    products = {catalogue_path(p): p for p in furniture.read_products(store.folder / "libraries")}
    absent = store.missing(products)
    store.add({path: (libraries.path / products[path].picture).read_bytes() for path in absent})
    return len(missing) + len(absent)


def catalogue_path(product: Product) -> str:
    """Path of a product's catalogue picture below the folder of pictures."""
    return f"catalogue/{product.id}{Path(product.picture).suffix.lower()}"


def _tasks(
    products: Sequence[Product], split: Mapping[str, Split], wanted: Plan
) -> list[pictures.Task]:
    """Everything to render, test and validation first."""
    tasks: list[pictures.Task] = []
    for name in ("test", "validation", "train"):
        members = [product for product in products if split[product.id] == name]
        shots = pictures.shot_tasks(members, name, wanted.shots[name])
        scenes = pictures.scene_tasks(members, name, wanted.scenes[name])
        tasks += _interleaved(shots, scenes)
    return tasks


def _interleaved(
    shots: Sequence[pictures.Task], scenes: Sequence[pictures.Task]
) -> list[pictures.Task]:
    """Both lists in their order at an even pace, so that a run cut short has some of each."""
    places = [
        (place / len(tasks), task) for tasks in (shots, scenes) for place, task in enumerate(tasks)
    ]
    return [task for _, task in sorted(places, key=lambda pair: pair[0])]


def _unfinished(task: pictures.Task, store: Store) -> bool:
    if store.missing(task.paths):
        return True
    if isinstance(task, pictures.Shots):
        return False
    listing = (store.folder / task.paths[1]).read_bytes()
    return bool(store.missing(crop["path"] for crop in pictures.crops_of(listing)))


def _rendered(
    tasks: Sequence[pictures.Task], libraries: _Unpacked, jobs: int
) -> Iterator[dict[str, bytes]]:
    render = partial(_render, libraries=libraries.path)
    if jobs == 1:
        yield from map(render, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(render, tasks)


def _render(task: pictures.Task, libraries: Path) -> dict[str, bytes]:
    return task.render(libraries)


def _crops(
    scenes: Iterable[pictures.SceneTask], store: Store
) -> list[tuple[Split, dict[str, str]]]:
    return [
        (scene.split, crop)
        for scene in scenes
        for crop in pictures.crops_of((store.folder / scene.paths[1]).read_bytes())
    ]


def _product_rows(
    products: Sequence[Product],
    split: Mapping[str, Split],
    shots: Iterable[pictures.Shots],
    crops: Iterable[tuple[Split, dict[str, str]]],
) -> list[dict[str, str]]:
    """Catalogue pictures in camera and shop, camera shots, crops of scenes.

    Camera rows never carry an instance: what an exact search must find is in `identity`.
    """
    category, shop_class = camera_categories(products), shop_classes(products)

    def camera(path: str, product: str, domain: str, part: Split) -> Row:
        labels = {CAMERA.category: category[product]}
        return _product_row(CAMERA.name, path, product, domain, part, labels)

    def shop(path: str, product: str, domain: str, part: Split) -> Row:
        labels = {SHOP_KIND: shop_class[product], SHOP.instance: product}
        return _product_row(SHOP.name, path, product, domain, part, labels)

    rows = []
    for product in products:
        place = catalogue_path(product), product.id, "catalogue", split[product.id]
        rows += [camera(*place), shop(*place)]
    for task in shots:
        rows += [camera(path, task.product.id, "shot", task.split) for path in task.paths]
    rows += [shop(crop["path"], crop["product"], "scene", part) for part, crop in crops]
    return [_complete(row) for row in rows]


def _product_row(
    task: str, path: str, product: str, domain: str, split: Split, labels: Mapping[str, str]
) -> Row:
    return {
        "image": f"{_PICTURES}/{path}",
        "task": task,
        "domain": domain,
        "split": split,
        "identity": product,
        "cluster": product,
        **labels,
    }


def _complete(row: Row) -> dict[str, str]:
    return {column: row.get(column, "") for column in COLUMNS}


def _fetched(home: Path, source: Source, console: Console) -> tuple[Path, bool]:
    path, new = sources.fetch(source, home / "downloads")
    state = "downloaded" if new else "in the cache"
    console.print(f"{source.package} {source.version}: {state}; {_credit(source)}", soft_wrap=True)
    return path, new


def _credit(source: Source) -> str:
    return f"{source.license}, {source.credit} ({source.use})"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
