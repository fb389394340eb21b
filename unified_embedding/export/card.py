"""The model card and licence that travel with an exported embedder."""

import textwrap
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

from unified_embedding.errors import SpecError
from unified_embedding.spec import EmbedderSpec
from unified_embedding.training.weights import LITE0_PACKAGE

APACHE: Final = "Apache-2.0"
_IMAGENET: Final = (
    "The trunk's publishers trained it to name the 1,000 classes of ImageNet-1k (ILSVRC 2012). "
    "ImageNet's pictures come from the web, mostly from North America and Europe; their labels and "
    "biases enter every embedding. Its own terms restrict them to non-commercial research; the "
    "weights were published under the licence above (Copyright (c) 2020, ML Illustrated); tensors "
    "were renamed and BatchNorm was folded here."
)
_INFLUENCE: Final = (
    "An influence loss of weight {weight:g} (Shen et al., CVPR 2020) against the embedder `{id}` "
    "aims at queries that can search that one's index."
)


def model_card(
    spec: EmbedderSpec, training: str, difference: float, fixed_map: bool = False, notes: str = ""
) -> str:
    """README.md of an embedder folder.

    Args:
        spec: what was exported.
        training: a paragraph on data and training, Markdown.
        difference: largest difference of torch and onnxruntime that the export measured.
        fixed_map: whether a fixed linear map stands in front of LayerNorm.
        notes: further sections, Markdown.
    """
    layers = "average pool, " + ("subtract a mean, rotate, " if fixed_map else "")
    further = f"\n{notes.strip()}\n" if notes else ""
    versions = ", ".join(f"`{version}`" for version in spec.compatible_with)
    exception = (
        f", except that its queries may search stored codes of {versions}" if versions else ""
    )
    preprocessing = spec.preprocessing
    side = preprocessing.size
    return f"""# {spec.name}

An image embedder for visual search: one picture in, one {spec.dim}-dimensional embedding and one
{spec.code_bytes}-byte sign-bit code out.

| | |
|---|---|
| version | `{spec.version}` (hash of graph, preprocessing and bit rule) |
| trunk | timm `{spec.trunk}`, {layers}LayerNorm without affine |
| weights | {spec.weights} |
| licence of the weights | {spec.license} |
| input `pixels` | uint8 [N, {side}, {side}, 3], RGB; normalised inside |
| resize | {preprocessing.resize}, {preprocessing.interpolation} |
| outputs `embedding`, `features` | float32 [N, {spec.dim}], equal values |
| torch against onnxruntime, fp32 | largest difference {difference:.1g} per value of unit variance |

## Training
{textwrap.fill(training.strip(), 100, break_on_hyphens=False)}
{further}
## Use
`make engine MODEL=<this folder>` compiles it behind accuracy gates; the README at the root of the
repository serves it. Compare embeddings by cosine, codes by Hamming distance, and never across
versions{exception}.

## Limits
- Embeddings tell what looks alike to this network. They are no statement about identity, safety,
  price or ownership, and were not evaluated on people or faces.
- Pictures unlike the training data (medical, satellite, text) are out of scope.
- A sign-bit code loses some precision against the float embedding; measure it on your own data.
"""


def zero_shot_training(spec: EmbedderSpec, pictures: str) -> str:
    """The card's paragraph for a trunk that was not trained jointly."""
    if spec.random:
        return (
            "**Untrained.** The weights are random; BatchNorm statistics were measured on "
            f"{pictures}. The folder shows the architecture's speed and size. Every retrieval "
            "figure, and every accuracy gate, computed with it is meaningless."
        )
    if LITE0_PACKAGE not in spec.weights:
        return (
            f"**Zero-shot.** The trunk carries the weights {spec.weights} as they were given, and "
            "was not trained jointly for visual search. Their training data is not known here."
        )
    return (
        "**Zero-shot: not trained jointly for visual search.** The trunk is EfficientNet-Lite0 "
        f"as its publishers trained it: {spec.weights}. {_IMAGENET}"
    )


def trained(summary: Mapping[str, Any], start: str) -> str:
    """The card's paragraph for a checkpoint of the training program.

    Args:
        summary: what the checkpoint states about its run.
        start: the weights that the training began with.
    """
    images = ", ".join(f"{count:,} pictures of {task}" for task, count in summary["images"].items())
    losses = summary.get("losses", {})
    heads = ", ".join(
        f"{column} ({count:,} classes, {summary['sampled'][column]:,} in a softmax"
        + (f", {losses[column]})" if column in losses else ")")
        for column, count in summary["classes"].items()
    )
    others = " where no other loss is named" if losses else ""
    figures = ", ".join(
        f"{task} {score.get('metric', 'R@1')} {score['float_']:.3f} by float and "
        f"{score['code']:.3f} by code on {score['queries']} queries"
        for task, score in summary["validation"].items()
    )
    how = "Trained jointly" if len(summary["tasks"]) > 1 else "Trained as a specialist"
    before = "".join(
        f", after {run['steps']:,} steps at {run['size']} px" for run in summary.get("earlier", [])
    )
    against = summary.get("compatible_with")
    return (
        f"{how} on {images}, for {summary['steps']:,} steps of {summary['batch']} pictures "
        f"({summary['epochs']:.1f} epochs of the largest set){before}, starting from: {start}. One "
        f"bias-free proxy head per label, normalised softmax{others}: {heads}. "
        + (f"{_INFLUENCE.format(**against)} " if against else "")
        + (f"On the validation split: {figures}. " if figures else "")
        + (_IMAGENET if LITE0_PACKAGE in start else "")
    )


def license_text(license: str, file: Path | None) -> str:
    """Text of LICENSE: the file when given, else Apache-2.0's own. Raises SpecError."""
    if file is not None:
        if not file.is_file():
            raise SpecError(f"licence file {file} does not exist")
        return file.read_text()
    if license != APACHE:
        raise SpecError(f"the text of {license} is not known here; pass it with --license-file")
    return (resources.files(__package__) / "licenses" / "Apache-2.0.txt").read_text()
