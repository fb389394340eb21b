"""A small manifest of all three tasks with made-up pictures, for the tests of evaluation."""

from pathlib import Path

from unified_embedding.datasets import made_up
from unified_embedding.datasets.manifest import COLUMNS, write_manifest

SIDE = 64
DESIGNS = ("flat", "round", "outline")
NEVER_TRAINED = "outline"
CONCEPTS = 12
PRODUCTS = 14
SHOTS = 2


def split_of(number: int, count: int) -> str:
    share = number / count
    return "train" if share < 0.5 else "validation" if share < 0.6 else "test"


def write_shop(folder: Path) -> Path:
    """Pictures and `folder/manifest.csv`; returns the manifest's path."""
    rows: list[dict[str, str]] = []
    for concept in range(CONCEPTS):
        split = split_of(concept, CONCEPTS)
        for variant, design in enumerate(DESIGNS):
            if design == NEVER_TRAINED and split != "test":
                continue
            image = _draw(folder, f"emoji/{design}/{concept}.png", concept, variant)
            label = f"concept {concept}"
            # Concepts 10 and 11 are one family: they succeed or fail together.
            family = "family 10" if concept in (10, 11) else f"family {concept}"
            rows.append(_row(image, "browse", design, split, label, family, browse_class=label))
    for product in range(PRODUCTS):
        split = split_of(product, PRODUCTS)
        name, look = f"product {product}", 100 + product
        # The last product carries no category, like Miscellaneous in the real catalogue.
        category = "" if product == PRODUCTS - 1 else f"category {product % 3}"
        labels = {"shop_class": f"class {product % 2}", "shop_instance": name}
        picture = _draw(folder, f"catalogue/{product}.png", look, 0)
        rows.append(_row(picture, "camera", "catalogue", split, name, camera_category=category))
        rows.append(_row(picture, "shop", "catalogue", split, name, **labels))
        for shot in range(1, SHOTS + 1):
            image = _draw(folder, f"shots/{product}-{shot}.png", look, shot)
            rows.append(_row(image, "camera", "shot", split, name, camera_category=category))
            image = _draw(folder, f"crops/{product}-{shot}.png", look, 10 + shot)
            rows.append(_row(image, "shop", "scene", split, name, **labels))
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def _row(
    image: str, task: str, domain: str, split: str, identity: str, cluster: str = "", **labels: str
) -> dict[str, str]:
    filled = {
        "image": image,
        "task": task,
        "domain": domain,
        "split": split,
        "identity": identity,
        "cluster": cluster or identity,
        **labels,
    }
    return {column: filled.get(column, "") for column in COLUMNS}


def _draw(folder: Path, name: str, label: int, variant: int) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made_up.picture(label, variant, SIDE).save(path)
    return name
