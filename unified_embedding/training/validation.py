"""The main figures on the validation split: what a model is selected by is what is served.

The searches and the figures are the evaluation's own (`TaskSpec.main`): a task with a category
by that among unseen things, one with a gallery by the very thing, one of pairs by R@1 over all
pairs of domains.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unified_embedding.image import Preprocessing
from unified_embedding.protocols.held_out import of_validation
from unified_embedding.protocols.measure import Cell, measure
from unified_embedding.protocols.tasks import MERGED_METRICS, build_tasks, in_order
from unified_embedding.training.dataset import pixels_of
from unified_embedding.training.examples import Examples


@dataclass(frozen=True)
class Score:
    """One task's main figure on its validation pictures.

    Attributes:
        metric: for instance "P@20".
        float_: by cosine of the embeddings.
        code: by Hamming distance of the sign-bit codes; ties share the credit.
        queries: number of queries.
    """

    metric: str
    float_: float
    code: float
    queries: int


def validate(
    model: nn.Module,
    examples: Examples,
    preprocessing: Preprocessing,
    device: torch.device,
    limit: int,
) -> dict[str, Score]:
    """The main figure of every task of `examples` that has anything to retrieve.

    Args:
        model: in any mode, which is restored.
        examples: of the validation split: nothing in them was trained on.
        preprocessing: of the pictures.
        device: of the model.
        limit: pictures per task, about; see `choose`.
    """
    chosen = [
        row
        for task in np.unique(examples.task).tolist()
        if examples.tasks[task].identity in examples.labels
        for row in choose(examples, task, limit).tolist()
    ]
    if not chosen:
        return {}
    chosen_rows = (
        {
            "image": examples.images[row],
            "task": str(examples.task[row]),
            "domain": str(examples.domain[row]),
            **{column: str(values[row]) for column, values in examples.labels.items()},
        }
        for row in chosen
    )
    pictures = of_validation(chosen_rows, examples.tasks)
    row_of = {examples.images[row]: row for row in chosen}
    rows = np.array([row_of[image] for image in pictures.images])
    was_training = model.training
    vectors = embed(model.eval(), examples, rows, preprocessing, device)
    model.train(was_training)
    searched = {task.name: task for task in build_tasks(pictures)}
    found = {}
    for task in in_order(examples.tasks):
        spec = examples.tasks[task]
        # Pictures of one domain alone have no pairs of domains.
        others = [(spec.merged, MERGED_METRICS[0])] if spec.search == "pairs" else []
        for name, metric in (spec.main, *others):
            if task in found or name not in searched:
                continue
            samples = measure(pictures, vectors, [searched[name]], ("float", "code")).samples
            by_float, by_code = (samples[Cell(name, metric, k)].values for k in ("float", "code"))
            found[task] = Score(
                metric, float(by_float.mean()), float(by_code.mean()), len(by_float)
            )
    return found


def choose(examples: Examples, task: str, limit: int) -> NDArray[np.int64]:
    """Rows of `task` that carry its label: all, or about `limit` of them.

    A gallery stays whole, and every label keeps its share of the queries, evenly spaced and at
    least one. Where pictures search one another, whole labels are kept, evenly spaced.
    """
    rows = examples.rows_of(task)
    spec = examples.tasks[task]
    labels = examples.labels[spec.identity][rows]
    rows, labels = rows[labels != ""], labels[labels != ""]
    if len(rows) <= limit:
        return np.asarray(rows)
    in_gallery = np.isin(examples.domain[rows], spec.gallery)
    if spec.search == "pairs" or not in_gallery.any():
        identities = np.unique(labels)
        kept = max(2, len(identities) * limit // len(rows))
        chosen = identities[np.arange(kept) * len(identities) // kept]
        return np.asarray(rows[np.isin(labels, chosen)])
    gallery, queries = rows[in_gallery], rows[~in_gallery]
    share = max(0, limit - len(gallery)) / max(1, len(queries))
    parts = [gallery]
    for label in np.unique(labels[~in_gallery]):
        members = queries[labels[~in_gallery] == label]
        count = max(1, round(len(members) * share))
        parts.append(members[np.arange(count) * len(members) // count])
    return np.sort(np.concatenate(parts))


@torch.no_grad()
def embed(
    model: nn.Module,
    examples: Examples,
    rows: NDArray[np.int64],
    preprocessing: Preprocessing,
    device: torch.device,
    batch: int = 32,
) -> NDArray[np.float32]:
    """Embeddings float32 [len(rows), D] of pictures without augmentation."""
    parts = []
    for start in range(0, len(rows), batch):
        pixels = [pixels_of(examples, int(r), preprocessing) for r in rows[start : start + batch]]
        parts.append(model(torch.from_numpy(np.stack(pixels)).to(device)).float().cpu().numpy())
    return np.concatenate(parts)
