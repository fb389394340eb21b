"""Proxy heads against independent references: torch's own softmax, SGD and dense gradients."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unified_embedding.errors import TrainingError
from unified_embedding.training.bank import (
    ProxyBank,
    RowOptimizer,
    RowwiseAdagrad,
    Sgd,
    first_proxies,
)
from unified_embedding.training.heads import DEFAULT_LOSS, FullHead, ProxyHead
from unified_embedding.training.losses import ArcFace, ProxyAnchor, ProxyLoss
from unified_embedding.training.sampled_head import SampledHead
from unified_embedding.training.subsampler import UNLABELLED

DIM, CLASSES, BATCH = 16, 23, 12


def make_labels(step: int, classes: int = CLASSES) -> np.ndarray:
    labels = np.random.default_rng([step]).integers(0, classes, BATCH)
    labels[::4] = UNLABELLED
    return labels


def inputs(step: int) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng([1, step]).standard_normal((BATCH, 8)).astype(np.float32)
    )


def reference_loss(embedding: Tensor, proxies: Tensor, labels: np.ndarray) -> Tensor:
    """Mean over labelled rows of L_norm, written from the formula."""
    total = torch.zeros((), dtype=embedding.dtype)
    rows = np.flatnonzero(labels != UNLABELLED)
    for row in rows:
        x = embedding[row] / embedding[row].pow(2).sum().sqrt()
        cosine = (proxies / proxies.pow(2).sum(1, keepdim=True).sqrt()) @ x
        total = total + torch.logsumexp(cosine / 0.05, 0) - cosine[int(labels[row])] / 0.05
    return total / len(rows)


@pytest.mark.parametrize("sampled", [None, CLASSES, CLASSES + 5])
def test_twenty_steps_equal_the_full_softmax_with_torch_sgd(sampled: int | None) -> None:
    """Losses 1e-6 relative, gradients and proxies 2e-6; prefetch is on."""
    sgd = Sgd(momentum=0.9, weight_decay=1e-3)
    head: ProxyHead = (
        FullHead("c", CLASSES, DIM, 5, optimizer=sgd)
        if sampled is None
        else SampledHead("c", CLASSES, DIM, sampled, 5, optimizer=sgd)
    )
    torch.manual_seed(0)
    trunk = nn.Linear(8, DIM)
    reference_trunk = nn.Linear(8, DIM)
    reference_trunk.load_state_dict(trunk.state_dict())
    proxies = nn.Parameter(first_proxies(CLASSES, DIM, 5))
    ours = torch.optim.SGD(trunk.parameters(), lr=0.01, momentum=0.9)
    reference = torch.optim.SGD(
        [
            {"params": reference_trunk.parameters(), "weight_decay": 0.0},
            {"params": [proxies], "weight_decay": 1e-3},
        ],
        lr=0.01,
        momentum=0.9,
    )
    for step in range(20):
        labels = make_labels(step)
        head.begin(labels, step)
        embedding = trunk(inputs(step))
        embedding.retain_grad()
        loss = head.loss(embedding, labels)
        ours.zero_grad()
        loss.backward()
        ours.step()
        head.update(0.01)

        expected_embedding = reference_trunk(inputs(step))
        expected_embedding.retain_grad()
        expected = reference_loss(expected_embedding, proxies, labels)
        reference.zero_grad()
        expected.backward()
        reference.step()

        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        close(embedding.grad, expected_embedding.grad)
        close(head.state()["rows"], proxies.detach())
        close(head.state()["kept"], reference.state[proxies]["momentum_buffer"])
    head.close()


def close(found: Tensor | None, expected: Tensor | None) -> None:
    """Relative error at most 2e-6, in the Euclidean norm: one thread rounds otherwise than two."""
    assert found is not None
    assert expected is not None
    assert float((found - expected).norm() / expected.norm()) <= 2e-6


def test_only_sampled_rows_and_their_momentum_move() -> None:
    sgd = Sgd(momentum=0.9, weight_decay=0.01)
    head = SampledHead("c", CLASSES, DIM, 10, 5, optimizer=sgd)
    rows = first_proxies(CLASSES, DIM, 5)
    velocity = torch.zeros(CLASSES, DIM)
    touched = set()
    for step in range(5):
        labels = make_labels(step, 8)
        head.begin(labels, step)
        chosen = head._sampled_set.copy()
        touched |= set(chosen.tolist())
        embedding = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(step))
        head.loss(embedding, labels).backward()
        head.update(0.1)
        # The dense reference, on the chosen rows alone.
        leaf = rows[chosen].clone().requires_grad_()
        local = np.where(labels == UNLABELLED, UNLABELLED, np.searchsorted(chosen, labels))
        reference_loss(embedding, leaf, local).backward()
        assert leaf.grad is not None
        velocity[chosen] = 0.9 * velocity[chosen] + leaf.grad + 0.01 * rows[chosen]
        rows[chosen] -= 0.1 * velocity[chosen]
        torch.testing.assert_close(head.state()["rows"], rows)
        torch.testing.assert_close(head.state()["kept"], velocity)
    untouched = sorted(set(range(CLASSES)) - touched)
    assert untouched
    assert torch.equal(head.state()["rows"][untouched], first_proxies(CLASSES, DIM, 5)[untouched])
    assert not head.state()["kept"][untouched].any()
    head.close()


@pytest.mark.parametrize("optimizer", [RowwiseAdagrad(0.01), Sgd(0.0, 0.01)], ids=str)
@pytest.mark.parametrize("file", [None, "c.bank"])
def test_rows_move_by_the_plain_formula_and_nothing_goes_stale(
    tmp_path: Path, optimizer: RowOptimizer, file: str | None
) -> None:
    path = None if file is None else tmp_path / file
    bank = ProxyBank(CLASSES, DIM, 3, optimizer, path)
    rows = first_proxies(CLASSES, DIM, 3).double().numpy()
    seen = np.zeros(CLASSES)
    for step in range(6):
        rng = np.random.default_rng(step)
        chosen = np.sort(rng.choice(CLASSES, 5, replace=False))
        gradient = rng.standard_normal((5, DIM))
        bank.update(chosen, torch.from_numpy(gradient).float(), 0.3)
        for place, row in enumerate(chosen):
            g = gradient[place] + 0.01 * rows[row]
            if isinstance(optimizer, RowwiseAdagrad):
                seen[row] += (g**2).mean()
                rows[row] -= 0.3 * g / (np.sqrt(seen[row]) + 1e-8)
            else:
                rows[row] -= 0.3 * g
    assert np.allclose(bank.rows.numpy(), rows, atol=1e-5)
    width = 1 if isinstance(optimizer, RowwiseAdagrad) else 0
    assert bank.kept.shape == (CLASSES, width)
    if path is not None:
        assert path.stat().st_size == 4 * CLASSES * (DIM + width)
    bank.close()


class _Operations(TorchDispatchMode):
    """Notes every operation that reaches the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("criterion", [DEFAULT_LOSS, ArcFace(), ProxyAnchor()], ids=str)
@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_a_step_never_asks_the_device_for_a_value(kind: str, criterion: ProxyLoss) -> None:
    """Each of these operations makes the host wait until a GPU has caught up."""
    head: ProxyHead = (
        FullHead("c", CLASSES, DIM, 0, criterion)
        if kind == "full"
        else SampledHead("c", CLASSES, DIM, 9, 0, criterion)
    )
    labels = make_labels(0, 6)
    with _Operations() as operations:
        head.begin(labels, 0)
        head.loss(torch.randn(BATCH, DIM, requires_grad=True), labels).backward()
        head.update(0.1)
    head.close()
    assert "aten::index_select" in operations.names
    waiting = ("nonzero", "_local_scalar_dense", "masked_select", "item", "aten::index.Tensor")
    assert not [name for name in operations.names if name.endswith(waiting)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("criterion", [DEFAULT_LOSS, ArcFace(), ProxyAnchor()], ids=str)
@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_a_step_never_waits_for_a_gpu(kind: str, criterion: ProxyLoss) -> None:
    from unified_embedding.training.distributed import Rank

    rank = Rank(device=torch.device("cuda:0"))
    head: ProxyHead = (
        FullHead("c", CLASSES, DIM, 0, criterion, rank=rank)
        if kind == "full"
        else SampledHead("c", CLASSES, DIM, 9, 0, criterion, rank=rank)
    )
    labels = make_labels(0, 6)
    embedding = torch.randn(BATCH, DIM, device="cuda:0", requires_grad=True)
    for step in range(2):
        head.begin(labels, step)
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            head.loss(embedding, labels).backward()
            head.update(0.1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    head.close()


def test_loss_of_an_untrained_head_is_near_the_logarithm_of_its_classes() -> None:
    head = SampledHead("c", 5000, 512, 1000, 0)
    labels = np.arange(64)
    head.begin(labels, 0)
    loss = head.loss(torch.randn(64, 512), labels)
    assert head.softmax_classes == 1000
    # Cosines of random vectors have variance 1 / D, which adds about 1 / (2 D sigma^2) = 0.39.
    assert loss.item() == pytest.approx(math.log(1000) + 0.39, abs=0.4)
    head.close()


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_a_batch_without_labels_moves_nothing_but_by_weight_decay(kind: str) -> None:
    sgd = Sgd(momentum=0.0, weight_decay=0.0)
    head: ProxyHead = (
        FullHead("c", CLASSES, DIM, 0, optimizer=sgd)
        if kind == "full"
        else SampledHead("c", CLASSES, DIM, 9, 0, optimizer=sgd)
    )
    labels = np.full(BATCH, UNLABELLED)
    embedding = torch.randn(BATCH, DIM, requires_grad=True)
    head.begin(labels, 0)
    loss = head.loss(embedding, labels)
    loss.backward()
    head.update(0.1)
    assert loss.item() == 0
    assert embedding.grad is not None
    assert not embedding.grad.any()
    assert torch.equal(head.state()["rows"], first_proxies(CLASSES, DIM, 0))
    head.close()


def test_gradient_scale_is_taken_out() -> None:
    plain, scaled = (FullHead("c", CLASSES, DIM, 0) for _ in range(2))
    embedding, labels = torch.randn(BATCH, DIM), make_labels(0)
    for head, scale in ((plain, 1.0), (scaled, 1024.0)):
        head.begin(labels, 0)
        (head.loss(embedding, labels) * scale).backward()
        head.update(0.1, scale)
    torch.testing.assert_close(plain.state()["rows"], scaled.state()["rows"])


def test_a_skipped_step_leaves_the_proxies_and_the_next_gradient_alone() -> None:
    for head in (FullHead("c", CLASSES, DIM, 0), SampledHead("c", CLASSES, DIM, 9, 0)):
        embedding, labels = torch.randn(BATCH, DIM), make_labels(0, 6)
        head.begin(labels, 0)
        (head.loss(embedding, labels) * math.inf).backward()
        head.skip()
        assert torch.equal(head.state()["rows"], first_proxies(CLASSES, DIM, 0))
        head.begin(labels, 1)
        head.loss(embedding, labels).backward()
        head.update(0.1)
        assert bool(torch.isfinite(head.state()["rows"]).all())
        head.close()


def test_steps_out_of_order_are_refused() -> None:
    head = SampledHead("c", CLASSES, DIM, 9, 0)
    with pytest.raises(TrainingError, match="loss without begin"):
        head.loss(torch.randn(BATCH, DIM), make_labels(0))
    with pytest.raises(TrainingError, match="update without a backward"):
        head.update(0.1)
    head.close()


def test_an_error_of_the_background_writer_surfaces() -> None:
    head = SampledHead("c", CLASSES, DIM, 9, 0)
    labels = make_labels(0, 6)
    head.begin(labels, 0)
    head.loss(torch.randn(BATCH, DIM), labels).backward()
    head.bank.kept = torch.zeros(2, 2)
    head.update(0.1)
    with pytest.raises(IndexError):
        head.begin(labels, 1)
    head.close()


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_state_of_another_shape_is_refused(kind: str) -> None:
    head: ProxyHead = (
        FullHead("c", CLASSES, DIM, 0) if kind == "full" else SampledHead("c", CLASSES, DIM, 9, 0)
    )
    with pytest.raises(TrainingError, match=r"rows of c are \(2, 2\), expected \(23, 16\)"):
        head.load({"rows": torch.zeros(2, 2), "kept": torch.zeros(2, 2)})
    with pytest.raises(TrainingError, match="rows of c are nothing"):
        head.load({})
    head.close()


def test_sampling_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"sampled\.c is 0"):
        SampledHead("c", CLASSES, DIM, 0, 0)


def test_a_mapped_bank_behaves_like_one_in_memory_and_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "banks" / "c.bank"
    mapped = SampledHead("c", CLASSES, DIM, 9, 0, file=path)
    memory = SampledHead("c", CLASSES, DIM, 9, 0)
    for step in range(4):
        labels = make_labels(step, 6)
        for head in (mapped, memory):
            head.begin(labels, step)
            embedding = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(step))
            head.loss(embedding, labels).backward()
            head.update(0.1)
    for name in ("rows", "kept"):
        assert torch.equal(mapped.state()[name], memory.state()[name])
    assert path.stat().st_size == 8 * CLASSES * DIM
    mapped.close()
    memory.close()
    assert not path.exists()


def test_a_second_process_of_the_host_sees_updates_of_a_mapped_bank(tmp_path: Path) -> None:
    path = tmp_path / "c.bank"
    path.write_bytes(b"left over by a killed run")
    writer = ProxyBank(CLASSES, DIM, 3, Sgd(0, 0), path)
    reader = ProxyBank(CLASSES, DIM, 3, Sgd(0, 0), path, writer=False)
    assert torch.equal(reader.rows, first_proxies(CLASSES, DIM, 3))
    chosen = np.array([1, 4])
    for bank in (writer, reader):  # the reader's own update is left out: one writer per host
        bank.update(chosen, torch.ones(2, DIM), 0.5)
    expected = first_proxies(CLASSES, DIM, 3)
    expected[chosen] -= 0.5
    torch.testing.assert_close(reader.gather(np.arange(CLASSES)), expected)
    reader.close()
    assert path.exists()
    writer.close()
    assert not path.exists()


def test_first_proxies_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = first_proxies(100, DIM, 1)
    assert float(whole.abs().max()) <= DIM**-0.5
    assert float(whole.abs().mean()) == pytest.approx(0.5 * DIM**-0.5, rel=0.1)
    monkeypatch.setattr("unified_embedding.training.bank._CHUNK", 16)
    assert torch.equal(first_proxies(100, DIM, 1), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_rows_prefetched_to_a_gpu_give_the_cpu_result() -> None:
    from unified_embedding.training.distributed import Rank

    heads = [
        SampledHead("c", CLASSES, DIM, 9, 0, rank=Rank(device=torch.device(name)))
        for name in ("cpu", "cuda:0")
    ]
    for step in range(5):
        labels = make_labels(step, 6)
        for head in heads:
            head.begin(labels, step)
            embedding = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(step))
            head.loss(embedding.to(head.rank.device), labels).backward()
            head.update(0.1)
    torch.testing.assert_close(heads[0].state()["rows"], heads[1].state()["rows"])
