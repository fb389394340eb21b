"""Figures of a whole test set against loops that follow the definitions word by word."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from made_up_shop import write_shop

from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.errors import CodeError
from unified_embedding.protocols.held_out import HeldOut, held_out
from unified_embedding.protocols.measure import Cell, Samples, measure
from unified_embedding.protocols.tasks import build_tasks
from unified_embedding.retrieval import Comparison

Row = dict[str, str]
Score = Callable[[np.ndarray, np.ndarray], float]

DIM = 32
SCORES: dict[Comparison, Score] = {
    "float": lambda q, g: float(q @ g / np.linalg.norm(q) / np.linalg.norm(g)),
    "asymmetric": lambda q, g: float(q @ np.where(g > 0, 1, -1) / np.linalg.norm(q)),
    "code": lambda q, g: -float(((q > 0) != (g > 0)).sum()),
}


@pytest.fixture(scope="module")
def rows_and_pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], HeldOut]:
    manifest = write_shop(tmp_path_factory.mktemp("shop"))
    rows = read_manifest(manifest)
    return rows, held_out(rows, manifest.parent)


@pytest.fixture(scope="module")
def vectors(rows_and_pictures: tuple[list[Row], HeldOut]) -> np.ndarray:
    """Labels shine through noise, so that figures are neither 0 nor 1."""
    _, pictures = rows_and_pictures
    rng = np.random.default_rng(3)
    centres: dict[str, np.ndarray] = {}
    rows = []
    for row in range(len(pictures)):
        label = str(pictures.labels["browse"][row] or pictures.labels["camera"][row]
                    or pictures.labels["shop"][row])  # fmt: skip
        centre = centres.setdefault(label, rng.normal(size=DIM))
        rows.append(centre + 1.7 * rng.normal(size=DIM))
    return np.array(rows, dtype=np.float32)


def searches(rows: list[Row], name: str) -> Iterator[tuple[list[Row], list[Row], str]]:
    """(queries, gallery, label column) of a task, read off the manifest."""

    def task(kind: str) -> list[Row]:
        return [row for row in rows if row["task"] == kind]

    def test(members: list[Row]) -> list[Row]:
        return [r for r in members if r["split"] == "test" and r["domain"] != "catalogue"]

    def catalogue(members: list[Row]) -> list[Row]:
        return [r for r in members if r["domain"] == "catalogue"]

    def design(*names: str) -> list[Row]:
        return [r for r in task("browse") if r["domain"] in names]

    if name == "camera category":
        yield test(task("camera")), catalogue(task("camera")), "camera_category"
    elif name == "camera category, unseen":
        unseen = [row for row in catalogue(task("camera")) if row["split"] != "train"]
        yield test(task("camera")), unseen, "camera_category"
    elif name == "camera exact":
        yield test(task("camera")), catalogue(task("camera")), "identity"
    elif name == "shop exact":
        yield test(task("shop")), catalogue(task("shop")), "shop_instance"
    elif name == "browse pairs":
        yield test(design("flat")), design("round"), "browse_class"
        yield test(design("round")), design("flat"), "browse_class"
    elif name == "browse merged":
        yield test(design("flat", "round")), design("flat", "round"), "browse_class"
    elif name == "browse unseen":
        for trained in ("flat", "round"):
            yield test(design(trained)), design("outline"), "browse_class"
            yield test(design("outline")), design(trained), "browse_class"
    else:
        raise AssertionError(name)


def ranked_lists(
    rows: list[Row], pictures: HeldOut, vectors: np.ndarray, name: str, score: Score
) -> Iterator[tuple[list[float], list[bool]]]:
    """Per query the scores of the gallery and which of it is right."""
    vector = dict(zip(pictures.images, vectors, strict=True))
    for queries, gallery, column in searches(rows, name):
        for query in queries:
            others = [answer for answer in gallery if answer["image"] != query["image"]]
            right = [bool(query[column]) and a[column] == query[column] for a in others]
            if any(right):
                found = [score(vector[query["image"]], vector[a["image"]]) for a in others]
                yield found, right


def by_random_orders(scores: list[float], right: list[bool], metric: str) -> float:
    """The metric's mean over many random orders of ties."""
    rng = np.random.default_rng(0)
    ties = len(set(scores)) < len(scores)
    values = []
    for _ in range(400 if ties else 1):
        order = sorted(rng.permutation(len(scores)), key=lambda i: -scores[i])
        hits = [right[i] for i in order]
        relevant = sum(hits)
        if metric.startswith("R@"):
            values.append(float(any(hits[: int(metric[2:])])))
        elif metric == "MRR":
            values.append(1 / (1 + hits.index(True)))
        elif metric == "P@20":
            values.append(sum(hits[:20]) / min(20, relevant))
        else:
            tops = [sum(hits[: i + 1]) / (i + 1) for i in range(relevant) if hits[i]]
            values.append(sum(tops) / relevant)
    return float(np.mean(values))


@pytest.mark.parametrize("comparison", SCORES)
def test_every_figure_follows_its_definition(
    rows_and_pictures: tuple[list[Row], HeldOut], vectors: np.ndarray, comparison: Comparison
) -> None:
    rows, pictures = rows_and_pictures
    tasks = [t for t in build_tasks(pictures) if not t.name.startswith("one index")]
    found = measure(pictures, vectors, tasks)
    assert len(tasks) == 7
    levels = []
    for task in tasks:
        lists = list(ranked_lists(rows, pictures, vectors, task.name, SCORES[comparison]))
        for metric in task.metrics:
            expected = np.mean([by_random_orders(*one, metric) for one in lists])
            samples = found.samples[Cell(task.name, metric, comparison)]
            assert len(samples.values) == len(lists)
            tolerance = 0.02 if comparison == "code" else 1e-9
            assert samples.values.mean() == pytest.approx(expected, abs=tolerance), (task, metric)
            levels.append(expected)
    assert 0.2 < np.mean(levels) < 0.9  # neither chance nor perfection would show a mistake


def test_one_index_searches_all_galleries_at_once(
    rows_and_pictures: tuple[list[Row], HeldOut], vectors: np.ndarray
) -> None:
    rows, pictures = rows_and_pictures
    found = measure(pictures, vectors, build_tasks(pictures))
    vector = dict(zip(pictures.images, vectors, strict=True))
    union = {r["image"]: r for r in rows if r["domain"] in ("flat", "round", "catalogue")}
    queries = [r for r in rows if r["task"] == "shop" and r["split"] == "test"
               and r["domain"] == "scene"]  # fmt: skip
    hits = []
    for query in queries:
        score = SCORES["float"]
        best = max(union, key=lambda image: score(vector[query["image"]], vector[image]))
        hits.append(union[best]["identity"] == query["identity"])
    figure = found.samples[Cell("one index, shop exact", "R@1", "float")]
    assert figure.values.mean() == pytest.approx(np.mean(hits))
    alone = found.samples[Cell("shop exact", "R@1", "float")]
    assert figure.values.mean() <= alone.values.mean()


def test_the_union_for_unseen_categories_holds_no_product_that_training_saw(
    rows_and_pictures: tuple[list[Row], HeldOut],
) -> None:
    rows, pictures = rows_and_pictures
    (task,) = [t for t in build_tasks(pictures) if t.name == "one index, camera category, unseen"]
    (search,) = task.searches
    found = {pictures.images[row] for row in search.gallery}
    trained = {r["image"] for r in rows if r["split"] == "train" and r["task"] != "browse"}
    emoji = {r["image"] for r in rows if r["domain"] in ("flat", "round")}
    assert not found & trained
    assert emoji < found


def test_the_best_answer_of_each_query_is_kept(
    rows_and_pictures: tuple[list[Row], HeldOut], vectors: np.ndarray
) -> None:
    _, pictures = rows_and_pictures
    (task,) = [t for t in build_tasks(pictures) if t.name == "shop exact"]
    found = measure(pictures, vectors, [task])
    first = found.first["shop exact", "float"]
    hits = pictures.labels["shop"][first] == pictures.labels["shop"][task.queries()]
    recall = found.samples[Cell("shop exact", "R@1", "float")].values
    assert (hits == recall).all()


def test_a_query_never_answers_itself(rows_and_pictures: tuple[list[Row], HeldOut]) -> None:
    _, pictures = rows_and_pictures
    # Every picture is its own nearest neighbour and all others are equally far.
    vectors = np.eye(len(pictures), DIM * 8, dtype=np.float32) + 1e-3
    (task,) = [t for t in build_tasks(pictures) if t.name == "browse merged"]
    first = measure(pictures, vectors, [task]).first["browse merged", "float"]
    assert (first != task.queries()).all()


def test_clusters_are_products_and_families(
    rows_and_pictures: tuple[list[Row], HeldOut], vectors: np.ndarray
) -> None:
    _, pictures = rows_and_pictures
    found = measure(pictures, vectors, build_tasks(pictures))
    browse = found.samples[Cell("browse pairs", "R@1", "float")]
    assert {"family 10"} < set(browse.clusters)
    assert "family 11" not in browse.clusters
    shop = found.samples[Cell("shop exact", "R@1", "float")]
    assert all(cluster.startswith("product") for cluster in shop.clusters)


def test_a_paired_difference_is_tighter_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    clusters = np.array([f"p{number // 4}" for number in range(400)])
    hard = np.repeat(rng.random(100), 4)
    weak = Samples((rng.random(400) < hard).astype(float), clusters)
    # The stronger system answers what the weaker one does, and a tenth of the rest.
    strong = Samples(np.maximum(weak.values, (rng.random(400) < 0.1).astype(float)), clusters)
    paired = strong.minus(weak).interval()
    assert paired.mean == pytest.approx(strong.interval().mean - weak.interval().mean)
    assert paired.low > 0
    assert strong.interval().low < weak.interval().high
    assert paired.high - paired.low < weak.interval().high - weak.interval().low


def test_differences_need_the_same_queries() -> None:
    ours = Samples(np.zeros(2), np.array(["a", "b"]))
    with pytest.raises(CodeError, match="same queries"):
        ours.minus(Samples(np.zeros(2), np.array(["a", "c"])))


def test_every_picture_needs_a_vector(rows_and_pictures: tuple[list[Row], HeldOut]) -> None:
    _, pictures = rows_and_pictures
    with pytest.raises(CodeError, match=f"{len(pictures)} pictures need as many vectors"):
        measure(pictures, np.zeros((3, DIM), dtype=np.float32), build_tasks(pictures))


def test_the_manifest_folder_may_be_anywhere(tmp_path: Path) -> None:
    manifest = write_shop(tmp_path / "deep" / "folder")
    pictures = held_out(read_manifest(manifest), manifest.parent)
    assert pictures.read(0)
