"""One training run: build, step, save, resume."""

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unified_embedding.errors import TrainingError
from unified_embedding.training import checkpoint
from unified_embedding.training.assembly import (
    build_gradnorm,
    build_heads,
    build_model,
    build_optimizer,
    build_plan,
    head_classes,
    mixed_seed,
)
from unified_embedding.training.class_means import class_means
from unified_embedding.training.compatible import build_influence
from unified_embedding.training.config import SOFTMAX, Config, HeadConfig
from unified_embedding.training.dataset import TrainingImages, training_pixels
from unified_embedding.training.distributed import Rank, gather_text, sum_over_ranks
from unified_embedding.training.examples import load_rows, select
from unified_embedding.training.model import FixedMap, InParts
from unified_embedding.training.schedule import Schedule

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What one step computed.

    Attributes:
        losses: mean over the labelled images of the global batch, by `Trainer.loss_names`.
        save: rank 0's wish to save now, known to all ranks.
    """

    losses: list[float]
    save: bool


class Trainer:
    """State of a run between steps. Every rank has one; methods are called on all of them.

    Args:
        config: the run.
        rank: this process.

    Attributes:
        step: the next step.
        loss_names: of the losses of a step: the heads' columns, and those of the old classifier.
        examples: rows to train on.
        held_out: rows to validate on; may be empty.
        best: best validation score so far.
        validated: figures of the latest validation, by task.
        earlier: steps, size and images of the runs that this one continues, oldest first.

    Raises:
        TrainingError, SpecError: the configuration does not fit its data or weights.
    """

    def __init__(self, config: Config, rank: Rank) -> None:
        self.config = config
        self.rank = rank
        self.run = Path(config.run)
        self.step = 0
        self.best = -math.inf
        self.validated: dict[str, Any] = {}
        self.earlier: list[dict[str, int]] = []
        self.preprocessing = config.preprocessing.build()
        rows, read = load_rows(config.data)
        self.examples = select(rows, read, config.data, "train")
        self.held_out = select(rows, read, config.data, "validation")
        self.classes = head_classes(config, self.examples)
        self.numbers = {c: self.examples.encoded(c, found) for c, found in self.classes.items()}
        self.plan = build_plan(config, self.examples, self.numbers)
        self.slots = self.plan.slots(rank.number, rank.world)
        self.schedule = Schedule.of(config.schedule, self.plan.steps_per_epoch)
        self.recipe, self.model = build_model(config, self.examples, rank.device)
        self.heads = build_heads(config, self.classes, self.model.dim, rank)
        weights = [config.heads.get(h.column, HeadConfig()).weight for h in self.heads]
        self.weights = torch.tensor(weights, device=rank.device)
        if config.gradnorm is not None and rank.world > 1:
            raise TrainingError("gradnorm runs in one process; start without torchrun")
        self.gradnorm = build_gradnorm(config, self.model, self.heads)
        self.influence = build_influence(
            config, self.examples, self.classes, self.model, self.heads, rank
        )
        self.optimizer = build_optimizer(config.schedule, self.model)
        self._average: AveragedModel | None = None
        if config.schedule.ema:
            averaging = get_ema_multi_avg_fn(config.schedule.ema)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(self.model, multi_avg_fn=averaging)
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=config.precision == "fp16")
        parts = config.accumulate
        self._trained = self.model if parts is None else InParts(self.model, parts)
        columns = [head.column for head in self.heads]
        old = [f"old_{column}" for column in columns if self.influence is not None]
        self.loss_names = [*columns, *old]
        self._parallel: nn.Module | None = None
        self._saved_at = time.monotonic()

    @property
    def embedder(self) -> nn.Module:
        """What is validated, saved and served: the averaged weights where there is an average."""
        return self.model if self._average is None else self._average.module

    def pixels(self) -> Iterator[Tensor]:
        """This rank's batches, from the current step to the last."""
        images = TrainingImages(
            self.examples, self.preprocessing, self.config.data, self.config.seed
        )
        return training_pixels(images, self.plan, self.step, self.schedule.steps, self.slots)

    def run_step(self, pixels: Tensor) -> StepResult:
        """One step on this rank's pixels uint8 [B / world, S, S, 3].

        Raises:
            TrainingError: a loss is not finite.
        """
        step, trunk_trains = self.step, self.schedule.trains_trunk(self.step)
        rows = self.plan.batch_rows(step)
        labels = [self.numbers[head.column][rows] for head in self.heads]
        for head, numbers in zip(self.heads, labels, strict=True):
            head.begin(numbers, step)
        torch.manual_seed(mixed_seed(self.config.seed, step, self.rank.number))
        with nullcontext() if trunk_trains else torch.no_grad(), self._autocast():
            embedding = self._network(trunk_trains)(pixels.to(self.rank.device, non_blocking=True))
        embedding = embedding.float()
        shares = [
            head.loss(embedding, numbers[self.slots])
            for head, numbers in zip(self.heads, labels, strict=True)
        ]
        # DistributedDataParallel averages gradients over ranks; these shares add up.
        scale = float(self.rank.world)
        if self.gradnorm is not None and trunk_trains:
            self.weights = self.gradnorm.step(shares)
        total = (torch.stack(shares) * self.weights).sum() * scale
        if self.influence is not None:
            old = self.influence.losses(embedding, labels, self.slots, step)
            total = total + self.influence.weight * (torch.stack(old) * self.weights).sum() * scale
            shares = [*shares, *old]
        moved = True
        if trunk_trains:
            scale *= float(self.scaler.get_scale())
            moved = self._move_trunk(total, step)
        else:
            total.backward()  # type: ignore[no-untyped-call]
        for head in self.heads:
            if moved:
                head.update(self.schedule.proxy_rate(step), scale)
            else:
                head.skip()
        self.step += 1
        return self._shared_result(shares, step)

    def save(self) -> Path:
        """Write last.pt on the first rank. Collective: proxies may have to settle."""
        heads = {head.column: head.state() for head in self.heads}
        path = self.run / checkpoint.LAST
        if self.rank.first:
            checkpoint.save(
                {
                    **self._embedder_values(),
                    "identity": self.config.identity(),
                    "classes": self.classes,
                    "examples": self.examples.fingerprint(),
                    "step": self.step,
                    "best": self.best,
                    "validated": self.validated,
                    "heads": heads,
                    **self._average_values(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "gradnorm": self.gradnorm.weights if self.gradnorm is not None else None,
                },
                path,
            )
        self._saved_at = time.monotonic()
        return path

    def save_best(self) -> None:
        """Write best.pt; call on the first rank only."""
        checkpoint.save(self._embedder_values(), self.run / checkpoint.BEST)

    def resume(self) -> bool:
        """Continue from the run's last.pt; False when there is none.

        Raises:
            TrainingError: it belongs to another configuration or other classes.
        """
        path = self.run / checkpoint.LAST
        if not path.exists():
            return False
        values = checkpoint.read(path)
        self._check_same_run(values, path)
        self.embedder.load_state_dict(values["embedder"])
        if self._average is not None:
            self.model.load_state_dict(values["trained"])
            self._average.n_averaged.fill_(values["averaged"])
        for head in self.heads:
            head.load(values["heads"][head.column])
        self.optimizer.load_state_dict(values["optimizer"])
        self.scaler.load_state_dict(values["scaler"])
        self.step, self.best = int(values["step"]), float(values["best"])
        self.validated = values["validated"]
        if self.gradnorm is not None:
            self.gradnorm.weights = values["gradnorm"].to(self.rank.device)
        self.earlier = values["summary"].get("earlier", [])
        return True

    def start_from(self, path: Path) -> list[str]:
        """Take the weights of another run's checkpoint, and its proxies where it has them.

        Returns:
            The label columns whose proxies were taken over (last.pt has them, best.pt not).

        Raises:
            TrainingError: another trunk, or other classes in a column.
        """
        values = checkpoint.read(path)
        if self.influence is not None and isinstance(self.model.fixed_map, FixedMap):
            theirs, ours = values["embedder"], self.model.fixed_map.state_dict()
            if any(not torch.equal(theirs[f"fixed_map.{n}"], t.cpu()) for n, t in ours.items()):
                raise TrainingError(
                    f"start_from {path} has another fixed map than compatible_with's; leave one out"
                )
        try:
            self.model.load_state_dict(values["embedder"])
            self.embedder.load_state_dict(values["embedder"])
        except (KeyError, RuntimeError) as error:
            raise TrainingError(f"start_from {path} holds another network ({error})") from error
        self.recipe = replace(
            self.recipe, weights=values["recipe"]["weights"], license=values["recipe"]["license"]
        )
        summary = values["summary"]
        size = values["recipe"]["preprocessing"]["size"]
        before = {
            "steps": summary["steps"],
            "size": size,
            "images": checkpoint.images_seen(summary) or 0,
        }
        self.earlier = [*summary.get("earlier", []), before]
        taken = []
        for head in self.heads:
            if head.column not in values.get("heads", {}):
                continue
            if values["classes"][head.column] != self.classes[head.column]:
                raise TrainingError(f"start_from {path} has other classes of {head.column}")
            rows = values["heads"][head.column]["rows"]
            head.load({"rows": rows, "kept": torch.zeros_like(head.state()["kept"])})
            taken.append(head.column)
        return taken

    def start_at_class_means(self, taken: list[str]) -> None:
        """Move fresh proxies to class means where `class_means` asks for it, but not `taken`'s."""
        limit = self.config.class_means
        fresh = {head.column: head for head in self.heads if head.column not in taken}
        if limit is None or not fresh:
            return
        numbers = {column: self.numbers[column] for column in fresh}
        found = class_means(
            self.model, self.examples, numbers, limit, self.preprocessing, self.rank
        )
        for column, rows in found.items():
            fresh[column].load({**fresh[column].state(), "rows": rows})

    def close(self) -> None:
        """Release threads and mapped files."""
        for head in self.heads:
            head.close()

    def fingerprint(self) -> str:
        """Hash of trunk and proxies, equal on all ranks.

        Raises:
            TrainingError: the ranks differ.
        """
        digest = hashlib.sha256()
        states = [self.model.state_dict(), *(head.state() for head in self.heads)]
        if self._average is not None:
            states.append(self._average.module.state_dict())
        for state in states:
            for name, tensor in state.items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().data)
        ours = digest.hexdigest()[:16]
        all_ranks = gather_text(ours)
        if len(set(all_ranks)) > 1:
            raise TrainingError(
                f"the ranks hold different weights ({', '.join(all_ranks)}); the checkpoint is not "
                "to be trusted: check that all ranks run the same code, data and libraries"
            )
        return ours

    def due(self) -> bool:
        """Whether a checkpoint is due by steps or by time."""
        minutes = (time.monotonic() - self._saved_at) / 60
        steps = self.step % self.config.checkpoint_steps == 0
        return steps or minutes >= self.config.checkpoint_minutes

    def _move_trunk(self, total: Tensor, step: int) -> bool:
        """Backward and optimiser step; False when fp16 overflowed and the step was left out."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(step)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        if self.config.schedule.clip:
            self.scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), self.config.schedule.clip)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        # A scale that fell is how GradScaler tells that it left the step out.
        moved = bool(self.scaler.get_scale() >= before)
        if moved and self._average is not None:
            self._average.update_parameters(self.model)
        return moved

    def _average_values(self) -> dict[str, Any]:
        """What a resume needs beside the average, which is what `_embedder_values` holds."""
        if self._average is None:
            return {}
        trained = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
        return {"trained": trained, "averaged": int(self._average.n_averaged)}

    def _shared_result(self, shares: list[Tensor], step: int) -> StepResult:
        due = self.rank.first and self.due()
        values = torch.stack([share.detach().double() for share in shares])
        flag = torch.tensor([float(due)], dtype=torch.float64, device=values.device)
        *losses, save = sum_over_ranks(torch.cat([values, flag])).tolist()
        for name, loss in zip(self.loss_names, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss of {name} is {loss} at step {step}; lower schedule.rate or "
                    "schedule.proxy_rate, or use precision=fp32"
                )
        return StepResult(losses, save > 0)

    def _network(self, trunk_trains: bool) -> nn.Module:
        if not trunk_trains:
            return self.model.eval()
        self.model.train()
        if self.rank.world == 1:
            return self._trained
        if self._parallel is None:
            cuda = self.rank.device.type == "cuda"
            self._parallel = DistributedDataParallel(
                self._trained,
                device_ids=[self.rank.device.index] if cuda else None,
                forward_sync_buffers=not self.config.model.frozen_batch_norm,
            )
        return self._parallel

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.rank.device.type, _DTYPES[self.config.precision])

    def _check_same_run(self, values: dict[str, Any], path: Path) -> None:
        saved, ours = values["identity"], self.config.identity()
        changed = sorted(k for k in ours if saved.get(k) != ours[k])
        if changed:
            raise TrainingError(
                f"{path} belongs to a run with another {', '.join(changed)}; choose another "
                "run=FOLDER, or delete that folder to start afresh"
            )
        if values["examples"] != self.examples.fingerprint():
            raise TrainingError(
                f"{path} was trained on other rows; the manifest has changed since. Choose another "
                f"run=FOLDER, and start_from={path} to keep the weights"
            )
        old = values["summary"].get("compatible_with")
        if self.influence is not None and (old or {}).get("id") != self.influence.summary["id"]:
            raise TrainingError(
                f"{path} was trained against another embedder than {self.influence.summary['old']} "
                "holds now; put that one back, or choose another run=FOLDER"
            )

    def _embedder_values(self) -> dict[str, Any]:
        summary = {
            "tasks": list(self.config.data.tasks),
            "steps": self.step,
            "trunk_steps": max(0, self.step - self.schedule.heads),
            "earlier": self.earlier,
            "epochs": self.step / self.plan.steps_per_epoch,
            "batch": self.config.batch,
            "images": {t: len(self.examples.rows_of(t)) for t in self.config.data.tasks},
            "classes": {c: len(found) for c, found in self.classes.items()},
            "sampled": {h.column: h.softmax_classes for h in self.heads},
            "losses": {
                column: head.loss
                for column, head in self.config.heads.items()
                if column in self.classes and head.loss not in (None, SOFTMAX)
            },
            "loss_weights": dict(
                zip([h.column for h in self.heads], self.weights.tolist(), strict=True)
            ),
            "compatible_with": self.influence.summary if self.influence is not None else None,
            "validation": self.validated,
        }
        return checkpoint.embedder_values(self.recipe, self.embedder.state_dict(), summary)
