"""Retrieval on the validation split: what a run's best model is chosen by."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unified_embedding.image import Preprocessing
from unified_embedding.retrieval import recall_at, scores
from unified_embedding.training.dataset import pixels_of
from unified_embedding.training.examples import IDENTITY, Examples


@dataclass(frozen=True)
class Recall:
    """R@1 of one task's validation pictures.

    Attributes:
        float_: by cosine of the embeddings.
        code: by Hamming distance of the sign-bit codes; ties share the credit.
        queries: number of queries.
    """

    float_: float
    code: float
    queries: int


def validate(
    model: nn.Module,
    examples: Examples,
    preprocessing: Preprocessing,
    device: torch.device,
    limit: int,
) -> dict[str, Recall]:
    """Recall per task, for the tasks of `examples` that have anything to retrieve.

    Every picture queries the pictures of other domains of its task (of the same domain where
    there is but one); right is a picture of the same identity. At most `limit` pictures per
    task take part, whole identities at even distances.
    """
    was_training = model.training
    model.eval()
    found = {}
    for task in np.unique(examples.task).tolist():
        column = IDENTITY[task]
        if column not in examples.labels:
            continue
        rows = choose(examples, task, limit)
        embedding = embed(model, examples, rows, preprocessing, device)
        recall = recall_among(embedding, examples.labels[column][rows], examples.domain[rows])
        if recall is not None:
            found[task] = recall
    model.train(was_training)
    return found


def choose(examples: Examples, task: str, limit: int) -> NDArray[np.int64]:
    """Rows of `task` that carry its identity label: all, or whole identities up to `limit`."""
    rows = examples.rows_of(task)
    labels = examples.labels[IDENTITY[task]][rows]
    rows, labels = rows[labels != ""], labels[labels != ""]
    if len(rows) <= limit:
        return np.asarray(rows)
    identities = np.unique(labels)
    kept = max(2, len(identities) * limit // len(rows))
    chosen = identities[np.arange(kept) * len(identities) // kept]
    return np.asarray(rows[np.isin(labels, chosen)])


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


def recall_among(
    embedding: NDArray[np.float32], labels: NDArray[np.str_], domain: NDArray[np.str_]
) -> Recall | None:
    """Leave-one-out R@1 across domains; None when no picture has a partner."""
    allowed = ~np.eye(len(labels), dtype=np.bool_)
    if len(np.unique(domain)) > 1:
        allowed &= domain[:, None] != domain[None, :]
    relevant = allowed & (labels[:, None] == labels[None, :])
    queries = np.flatnonzero(relevant.any(axis=1))
    if not len(queries):
        return None
    figures = []
    for comparison in ("float", "code"):
        similarity = scores(embedding[queries], embedding, comparison)
        similarity[~allowed[queries]] = -np.inf
        figures.append(float(recall_at(similarity, relevant[queries], 1).mean()))
    return Recall(figures[0], figures[1], len(queries))
