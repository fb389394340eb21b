"""Small folders in the published layout of each public set, with made-up pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.io import savemat

from unified_embedding.datasets import made_up

SIDE = 48
VIEWS = 3


def draw(path: Path, label: int, variant: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made_up.picture(label, variant, SIDE).save(path)


def stanford(root: Path) -> Path:
    lists: dict[str, list[str]] = {"Ebay_train.txt": [], "Ebay_test.txt": []}
    for product in range(8):
        file = "Ebay_train.txt" if product < 3 else "Ebay_test.txt"
        kind = ("bicycle", "coffee_maker")[product % 2]
        for view in range(VIEWS):
            image = f"{kind}_final/{product}_{view}.JPG"
            draw(root / image, product, view)
            lists[file].append(
                f"{VIEWS * product + view + 1} {product} {product % 2 + 1} {image}\n"
            )
    for file, body in lists.items():
        (root / file).write_text("image_id class_id super_class_id path\n" + "".join(body))
    return root


def in_shop(root: Path) -> Path:
    rows = []
    for number in range(7):
        item = f"id_{number:08}"
        for view in range(VIEWS):
            status = "train" if number < 2 else ("query", "gallery", "gallery")[view]
            image = f"img/WOMEN/Blouses_Shirts/{item}/0{view}_1_front.jpg"
            draw(root / image, number, view)
            rows.append(f"{image}    {item}   {status}\n")
    text = f"{len(rows)}\nimage_name item_id evaluation_status\n{''.join(rows)}"
    (root / "list_eval_partition.txt").write_text(text)
    return root


def cub(root: Path) -> Path:
    lists = root / "CUB_200_2011"
    images, classes, number = "", "", 0
    for species in (1, 100, 101, 102, 150, 200):
        for view in range(VIEWS):
            number += 1
            name = f"{species:03}.Some_Bird/Some_Bird_{view:04}_{number}.jpg"
            draw(lists / "images" / name, species, view)
            images += f"{number} {name}\n"
            classes += f"{number} {species}\n"
    (lists / "images.txt").write_text(images)
    (lists / "image_class_labels.txt").write_text(classes)
    return root


CARS = (1, 98, 99, 100, 196)


def cars(root: Path) -> Path:
    """The one list of all 16,185 pictures, as metric learning uses it."""
    rows = []
    for model in CARS:
        for view in range(VIEWS):
            image = f"car_ims/{len(rows) + 1:06}.jpg"
            draw(root / image, model, view)
            rows.append((image, 1, 2, 3, 4, model, view % 2))
    fields = ("relative_im_path", *(f"bbox_{s}" for s in ("x1", "y1", "x2", "y2")), "class", "test")
    _annotations(root / "cars_annos.mat", fields, rows)
    return root


def cars_devkit(root: Path) -> Path:
    """The two folders with the devkit, whose own split is not used."""
    rows: dict[str, list[tuple[object, ...]]] = {"train": [], "test": []}
    for model in CARS:
        for view in range(VIEWS):
            half = rows["test" if view == 2 else "train"]
            name = f"{len(half) + 1:05}.jpg"
            draw(root / f"cars_{'test' if view == 2 else 'train'}" / name, model, view)
            half.append((1, 2, 3, 4, model, name))
    fields = (*(f"bbox_{side}" for side in ("x1", "y1", "x2", "y2")), "class", "fname")
    (root / "devkit").mkdir()
    _annotations(root / "devkit" / "cars_train_annos.mat", fields, rows["train"])
    _annotations(root / "devkit" / "cars_test_annos_withlabels.mat", fields, rows["test"])
    return root


def _annotations(path: Path, fields: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    struct = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
    for place, row in enumerate(rows):
        struct[0, place] = row
    savemat(path, {"annotations": struct})


def landmark_id(kind: str, number: int) -> str:
    return f"{kind}{number:x}".ljust(16, "0")


def gldv2(root: Path) -> Path:
    """Five places with four index pictures each, one distractor, and lists that overlap."""
    index = [landmark_id("a", number) for number in range(21)]
    for number, name in enumerate(index):
        draw(root / "index" / name[0] / name[1] / name[2] / f"{name}.jpg", number // 4, number % 4)
    solution = "id,images,Usage\n"
    for number in range(6):
        query = landmark_id("b", number)
        draw(root / "test" / query[0] / query[1] / query[2] / f"{query}.jpg", number % 5, 7)
        answers = index[4 * (number % 5) : 4 * (number % 5) + 4]
        # The last query shows two places.
        answers += index[4:8] if number == 5 else []
        solution += f"{query},{' '.join(answers)},{('Private', 'Public')[number % 2]}\n"
    solution += f"{landmark_id('c', 0)},None,Ignored\n"
    (root / "index.csv").write_text("id\n" + "\n".join(index) + "\n")
    (root / "retrieval_solution_v2.1.csv").write_text(solution)
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "sop": stanford,
    "in-shop": in_shop,
    "cub": cub,
    "cars": cars,
    "gldv2": gldv2,
}
