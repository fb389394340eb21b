"""Public benchmarks: published splits, published metrics, and the command from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_embedder
import torch
import yaml
from numpy.typing import NDArray
from public_sets import LAYOUTS, cars, cars_devkit, cub, gldv2, stanford
from scipy.io import savemat
from typer.testing import CliRunner

from unified_embedding import onnx_file
from unified_embedding.codes import hamming, pack
from unified_embedding.datasets.importers import import_manifest
from unified_embedding.datasets.manifest import read_manifest
from unified_embedding.errors import CodeError, DataError
from unified_embedding.evaluation import benchmark as command
from unified_embedding.evaluation import evaluate
from unified_embedding.evaluation.embedders import LocalEmbedder, open_embedder, resized
from unified_embedding.image import Preprocessing, load_pixels
from unified_embedding.protocols import benchmarks
from unified_embedding.protocols.benchmarks import BENCHMARKS, Copy, measure_copy
from unified_embedding.protocols.measure import Cell, Measurement

DIM = 64


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Copy]:
    """A small copy of every public set, opened."""
    return {
        name: BENCHMARKS[name].open(layout(tmp_path_factory.mktemp(name)))
        for name, layout in LAYOUTS.items()
    }


def vectors_of(copy: Copy) -> NDArray[np.float32]:
    """Embeddings in which pictures that show the same thing are near, but not always nearest."""
    rng = np.random.default_rng(len(copy.images))
    noise = rng.normal(size=(len(copy.images), DIM))
    vectors = noise.copy()
    # Where all pictures search one another, both sides of a pair come nearer.
    strength = 0.1 if np.array_equal(copy.queries, copy.gallery) else 0.3
    for query, answers in zip(copy.queries, copy.answers, strict=True):
        vectors[query] += noise[copy.gallery[answers]].mean(axis=0) * strength
    return vectors.astype(np.float32)


def test_the_published_halves_are_searched(copies: dict[str, Copy]) -> None:
    counts = {name: (len(c.queries), len(c.gallery)) for name, c in copies.items()}
    assert counts == {
        "sop": (15, 15),  # products 3 to 7, of Ebay_test.txt
        "in-shop": (5, 10),
        "cub": (12, 12),  # species 101, 102, 150 and 200
        "cars": (9, 9),  # models 99, 100 and 196
        "gldv2": (6, 21),
    }
    assert {image.split("/")[2][:3] for image in copies["cub"].images} == {
        "101", "102", "150", "200",
    }  # fmt: skip
    for name, copy in copies.items():
        assert BENCHMARKS[name].incomplete(copy)
        for query, answers in zip(copy.queries, copy.answers, strict=True):
            assert query not in copy.gallery[answers]
            wanted = {"sop": 2, "in-shop": 2, "cub": 2, "cars": 2}.get(name)
            assert wanted is None or len(answers) == wanted
    assert [len(answers) for answers in copies["gldv2"].answers] == [4, 4, 4, 4, 4, 8]
    assert copies["gldv2"].part.tolist() == ["private", "public"] * 3


def test_both_layouts_of_cars_hold_the_same(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one = BENCHMARKS["cars"].open(cars(tmp_path / "one"))
    two = BENCHMARKS["cars"].open(cars_devkit(tmp_path / "two"))
    pictures = [{copy.read(row) for row in copy.queries.tolist()} for copy in (one, two)]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 9


@pytest.mark.parametrize("name", ["sop", "in-shop", "cub", "cars"])
def test_figures_are_those_of_pytorch_metric_learning(copies: dict[str, Copy], name: str) -> None:
    calculator = pytest.importorskip(
        "pytorch_metric_learning.utils.accuracy_calculator", reason="dev extra"
    )
    copy, benchmark = copies[name], BENCHMARKS[name]

    class Recalls(calculator.AccuracyCalculator):  # type: ignore[misc, name-defined]
        """PML's own search and label comparison; it has no recall at K itself."""

        def calculate_recall(self, knn_labels, query_labels, **_):  # type: ignore[no-untyped-def]
            same = self.label_comparison_fn(query_labels[:, None], knn_labels)
            ks = [int(m[2:]) for m in benchmark.metrics if m.startswith("R@")]
            return [float(same[:, :k].any(dim=1).float().mean()) for k in ks]

        def requires_knn(self):  # type: ignore[no-untyped-def]
            return [*super().requires_knn(), "recall"]

    vectors = vectors_of(copy)
    unit = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    labels = {int(row): number for row, number in zip(copy.queries, _labels(copy), strict=True)}
    for number, answers in zip(_labels(copy), copy.answers, strict=True):
        labels |= {int(row): number for row in copy.gallery[answers]}
    of_gallery = torch.tensor([labels[int(row)] for row in copy.gallery])
    of_queries = torch.tensor([labels[int(row)] for row in copy.queries])
    alone = bool(np.array_equal(copy.queries, copy.gallery))
    truth = Recalls(include=("recall", "mean_average_precision_at_r"), k=len(copy.gallery) - alone)
    found = truth.get_accuracy(
        unit[copy.queries],
        of_queries,
        *(() if alone else (unit[copy.gallery], of_gallery, False)),
    )
    ours = measure_copy(copy, vectors, [*benchmark.metrics, "mAP@R"], ("float",))
    assert _mean(ours, "mAP@R") == pytest.approx(found["mean_average_precision_at_r"], abs=1e-6)
    recalls = [_mean(ours, metric) for metric in benchmark.metrics if metric.startswith("R@")]
    assert recalls == pytest.approx(found["recall"], abs=1e-6)
    assert 0 < recalls[0] < 1


def _labels(copy: Copy) -> list[int]:
    return np.unique(copy.clusters, return_inverse=True)[1].tolist()  # type: ignore[no-any-return]


def _mean(measurement: Measurement, metric: str, part: str = "", by: str = "float") -> float:
    return float(measurement.samples[Cell(part, metric, by)].values.mean())  # type: ignore[arg-type]


def test_landmarks_are_scored_by_their_own_lists(copies: dict[str, Copy]) -> None:
    copy = copies["gldv2"]
    vectors = vectors_of(copy)
    ours = measure_copy(copy, vectors, ["mAP@3", "mAP@100"], ("float", "code"))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for k, part in ((3, "private"), (3, "public"), (100, "private"), (100, "public")):
        wanted = []
        for row in np.flatnonzero(copy.part == part):
            ranked = np.argsort(-(unit[copy.gallery] @ unit[copy.queries[row]]))
            hits = np.isin(ranked, copy.answers[row])[:k]
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            wanted.append((precision * hits).sum() / min(k, len(copy.answers[row])))
        assert _mean(ours, f"mAP@{k}", part) == pytest.approx(np.mean(wanted))


def test_codes_are_compared_by_their_distance_in_blocks_of_any_size(
    copies: dict[str, Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copies["in-shop"]
    vectors = vectors_of(copy)
    whole = measure_copy(copy, vectors, ["R@1", "mAP@R"])
    codes = pack(vectors)
    distance = hamming(codes[copy.queries], codes[copy.gallery])
    for row, answers in enumerate(copy.answers):
        nearest = np.flatnonzero(distance[row] == distance[row].min())
        share = len(set(nearest) & set(answers)) / len(nearest)
        assert whole.samples[Cell("", "R@1", "code")].values[row] == pytest.approx(share)
    counted: list[int] = []
    monkeypatch.setattr(benchmarks, "_CELLS", 2 * len(copy.gallery))
    parts = measure_copy(copy, vectors, ["R@1", "mAP@R"], advance=counted.append)
    assert counted == [2, 2, 1] * 3
    for cell, samples in whole.samples.items():
        assert samples.values == pytest.approx(parts.samples[cell].values)
    with pytest.raises(CodeError, match="15 pictures need as many vectors"):
        measure_copy(copy, vectors[:4], ["R@1"])


def test_cub_and_cars_can_be_trained_on(tmp_path: Path) -> None:
    for name, layout, halves in (("cub", cub, (6, 12)), ("cars", cars, (6, 9))):
        (tmp_path / name).mkdir()
        rows = read_manifest(import_manifest(name, layout(tmp_path / name)))
        splits = [row["split"] for row in rows]
        assert (len(splits) - splits.count("test"), splits.count("test")) == halves
        assert all(row["identity"] == row["shop_instance"] for row in rows)


@pytest.mark.parametrize(
    ("name", "file", "damage", "says"),
    [
        ("sop", "Ebay_test.txt", None, "Ebay_test.txt does not exist; unpack the data set there"),
        ("sop", "Ebay_train.txt", b"\xff\xfe", "Ebay_train.txt is damaged"),
        ("sop", "coffee_maker_final/3_1.JPG", None, "3_1.JPG is not there"),
        ("in-shop", "list_eval_partition.txt", None, "holds neither list_eval_partition.txt"),
        ("cub", "CUB_200_2011/image_class_labels.txt", b"1 1\n", "image '2' has no class"),
        ("cub", "CUB_200_2011/image_class_labels.txt", b"1 one\n", "class 'one' is not a number"),
        ("cars", "cars_annos.mat", b"MATLAB 5.0", "cannot be read as a MATLAB file"),
        ("cars", "cars_annos.mat", None, "holds neither devkit/cars_train_annos.mat nor"),
        ("gldv2", "index.csv", None, "holds no index.csv, nor does its folder index; download it"),
        ("gldv2", "index.csv", b"id\na000\n", "is not in .*different versions"),
        ("gldv2", "retrieval_solution_v2.1.csv", b"id,images\n", "expected the header id,images"),
        ("gldv2", "retrieval_solution_v2.1.csv", b"id,images,Usage\nb,,Other\n", "Usage 'Other'"),
        ("gldv2", "index/a/1/0/a100000000000000.jpg", None, "is not there; unpack the tar files"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    tmp_path: Path, name: str, file: str, damage: bytes | None, says: str
) -> None:
    root = LAYOUTS[name](tmp_path)
    (root / file).unlink()
    if damage is not None:
        (root / file).write_bytes(damage)
    with pytest.raises(DataError, match=says):
        BENCHMARKS[name].open(root)


def test_a_query_without_an_answer_is_named(tmp_path: Path) -> None:
    root = stanford(tmp_path)
    lines = (root / "Ebay_test.txt").read_text().splitlines()
    (root / "Ebay_test.txt").write_text("\n".join(lines[:-2]) + "\n")
    with pytest.raises(DataError, match="has no other picture of its class '7'"):
        BENCHMARKS["sop"].open(root)


def test_another_matlab_file_is_refused(tmp_path: Path) -> None:
    savemat(tmp_path / "cars_annos.mat", {"annotations": {"fname": "a.jpg", "class": 1}})
    with pytest.raises(DataError, match="annotation 1 has no relative_im_path"):
        BENCHMARKS["cars"].open(tmp_path)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, graph = tmp_path_factory.mktemp("released"), tiny_embedder.tiny_embedder()
    onnx_file.save(graph, tiny_embedder.spec_of(graph), folder)
    return folder


def invoke(*arguments: str) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, result.output


def test_one_command_reports_beside_published_rows(
    tmp_path: Path, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sop").mkdir()
    root, out, cache = stanford(tmp_path / "sop"), tmp_path / "out", tmp_path / "cache"
    where = ["--cache", str(cache), "--out", str(out), "--threads", "1"]
    fixed = ["sop", str(root), "--embedder", str(released), *where]
    code, output = invoke(*fixed)
    assert code == 0, output
    report = (out / "sop.md").read_text()
    assert report in output
    assert "| embedder | dim | pictures | by | R@1 | R@10 | R@100 | R@1000 |" in report
    assert "shorter side 18, centre 16" in report
    assert "15 queries, the published set has 60,502" in report
    assert "Zhai and Wu, BMVC 2019" in report
    found = json.loads((out / "sop.json").read_text())
    figures = {(f["metric"], f["comparison"]): f["mean"] for f in found["rows"][0]["figures"]}
    # The published size, then the network, then nearest neighbours: by hand.
    copy = BENCHMARKS["sop"].open(root)
    embedder = resized(open_embedder(str(released), 1), command.CROPPED)
    assert isinstance(embedder, LocalEmbedder)
    expected = Preprocessing(size=16, resize="center_crop", crop_pct=0.875)
    assert embedder.preprocessing == expected
    vectors = embedder.embed([copy.read(row) for row in range(len(copy.images))])
    again = measure_copy(copy, vectors, ["R@1", "R@10"])
    for metric in ("R@1", "R@10"):
        for by in ("float", "code"):
            assert figures[metric, by] == pytest.approx(_mean(again, metric, by=by))
    # Again: nothing is embedded.
    with monkeypatch.context() as patch:
        patch.setattr(LocalEmbedder, "embed", lambda *_: pytest.fail("the cache holds them"))
        assert invoke(*fixed)[0] == 0
        assert (out / "sop.md").read_text() == report
    # As it is served, the whole picture; that is another embedding.
    code, output = invoke(*fixed, "--resize", "own")
    assert code == 0, output
    assert "whole, in a square of 16" in output
    assert len(list((cache / "features").iterdir())) == 2
    picture = copy.read(0)
    whole = load_pixels(picture, Preprocessing(size=16))
    assert not np.array_equal(whole, load_pixels(picture, expected))


def test_landmarks_report_both_halves(tmp_path: Path, released: Path) -> None:
    (tmp_path / "set").mkdir()
    fixed = ["--cache", str(tmp_path), "--out", str(tmp_path), "--embedder", str(released)]
    code, output = invoke("gldv2", str(gldv2(tmp_path / "set")), *fixed, "--threads", "1")
    assert code == 0, output
    assert "| private mAP@100 | public mAP@100 |" in output
    assert "whole, in a square of 16" in output


def test_the_evaluation_measures_an_imported_set_too(tmp_path: Path, released: Path) -> None:
    """`evaluate --manifest PATH --out DIR`: one task, few classes, no other test set."""
    import typer

    (tmp_path / "sop").mkdir()
    manifest = import_manifest("sop", stanford(tmp_path / "sop"), validation_share=0)
    rows = [
        {"name": "start", "source": str(released), "kind": "zero-shot"},
        {"name": "ours", "source": str(released), "kind": "unified", "baseline": "start"},
        {"name": "absent", "source": "no/last.pt", "kind": "specialist", "task": "shop"},
    ]
    config = {
        "frozen": "0123456789ab",  # of another test set, as the shipped configuration has it
        "rows": rows,
        "last_layers": {"source": str(released)},
        "elsewhere": [
            {"name": "x", "manifest": "x/manifest.csv", "task": "camera category", "metric": "P@20"}
        ],
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(config))
    app = typer.Typer()
    app.command()(evaluate.main)
    fixed = [str(tmp_path / "e.yaml"), "--manifest", str(manifest), "--cache", str(tmp_path / "c")]
    result = CliRunner().invoke(app, [*fixed, "--threads", "1"])
    assert result.exit_code == 1
    assert "give --out DIR" in result.output
    result = CliRunner().invoke(app, [*fixed, "--threads", "1", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "last layers: not run, 5 % of the 3 classes of shop_instance are fewer" in said
    assert "x: not run" in said
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]["figures"]
    ours = {f["metric"]: f["mean"] for f in figures if f["comparison"] == "float"}
    assert {f["task"] for f in figures} == {"shop exact", "one index, shop exact"}
    # The same test half as the benchmark's, by the same network on whole pictures.
    out = ["--out", str(tmp_path / "b"), "--resize", "own", "--cache", str(tmp_path / "c")]
    code, output = invoke("sop", str(tmp_path / "sop"), "--embedder", str(released), *out)
    assert code == 0, output
    theirs = json.loads((tmp_path / "b" / "sop.json").read_text())["rows"][0]["figures"]
    for metric in ("R@1", "R@10"):
        (wanted,) = (
            f["mean"] for f in theirs if (f["metric"], f["comparison"]) == (metric, "float")
        )
        assert ours[metric] == pytest.approx(wanted)


def test_bad_requests_are_refused(tmp_path: Path, released: Path) -> None:
    code, output = invoke("cifar", str(tmp_path))
    assert code == 1
    assert "'cifar' is not one of sop, in-shop, cub, cars, gldv2" in output
    (tmp_path / "sop").mkdir()
    root = stanford(tmp_path / "sop")
    (root / "coffee_maker_final" / "5_2.JPG").write_bytes(b"no picture")
    fixed = ["--cache", str(tmp_path), "--out", str(tmp_path / "out"), "--embedder", str(released)]
    code, output = invoke("sop", str(root), *fixed, "--threads", "1")
    assert code == 1
    assert "5_2.JPG cannot be embedded" in output.replace("\n", "")
    assert "replace that file" in output.replace("\n", " ")
    assert not (tmp_path / "out").exists()
