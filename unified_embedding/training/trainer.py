"""One training run: build, step, save, resume."""

import hashlib
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unified_embedding.errors import TrainingError
from unified_embedding.training import checkpoint
from unified_embedding.training.checkpoint import EmbedderRecipe
from unified_embedding.training.config import Config
from unified_embedding.training.dataset import TrainingImages, training_pixels
from unified_embedding.training.distributed import Rank, gather_text, sum_over_ranks
from unified_embedding.training.examples import IDENTITY, load_examples
from unified_embedding.training.heads import FullHead, ProxyHead, SampledHead, Sgd
from unified_embedding.training.model import FixedMap, UnifiedEmbedder
from unified_embedding.training.plan import Plan
from unified_embedding.training.schedule import Schedule
from unified_embedding.training.validation import embed
from unified_embedding.training.weights import load_trunk, trunk_weights

_MAP_PICTURES = 512
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What one step computed.

    Attributes:
        losses: mean over the labelled images of the global batch, per head.
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
        best: best validation score so far.

    Raises:
        TrainingError, SpecError: the configuration does not fit its data or weights.
    """

    def __init__(self, config: Config, rank: Rank) -> None:
        self.config = config
        self.rank = rank
        self.run = Path(config.run)
        self.step = 0
        self.best = -math.inf
        self.preprocessing = config.preprocessing.build()
        self.examples = load_examples(config.data, "train")
        self.classes = {
            column: found
            for column in config.data.labels
            if (found := self.examples.classes(column))
        }
        self._check_classes()
        self.numbers = {c: self.examples.encoded(c, found) for c, found in self.classes.items()}
        self.plan = self._plan()
        self.slots = self.plan.slots(rank.number, rank.world)
        self.schedule = Schedule.of(config.schedule, self.plan.steps_per_epoch)
        self.recipe, self.model = self._model()
        self.heads = self._heads()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained,
            lr=config.schedule.rate,
            momentum=config.schedule.momentum,
            weight_decay=config.schedule.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(rank.device.type, enabled=config.precision == "fp16")
        self._parallel: nn.Module | None = None
        self._saved_at = time.monotonic()

    def pixels(self) -> Any:
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
        torch.manual_seed(_seed(self.config.seed, step, self.rank.number))
        with nullcontext() if trunk_trains else torch.no_grad(), self._autocast():
            embedding = self._network(trunk_trains)(pixels.to(self.rank.device, non_blocking=True))
        embedding = embedding.float()
        shares = [
            head.loss(embedding, numbers[self.slots])
            for head, numbers in zip(self.heads, labels, strict=True)
        ]
        # DistributedDataParallel averages gradients over ranks; these shares add up.
        scale = float(self.rank.world)
        total = torch.stack(shares).sum() * scale
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
                    "step": self.step,
                    "best": self.best,
                    "heads": heads,
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                },
                path,
            )
        self._saved_at = time.monotonic()
        return path

    def save_best(self, figures: dict[str, Any]) -> None:
        """Write best.pt; call on the first rank only."""
        checkpoint.save(self._embedder_values(figures), self.run / checkpoint.BEST)

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
        self.model.load_state_dict(values["embedder"])
        for head in self.heads:
            head.load(values["heads"][head.column])
        self.optimizer.load_state_dict(values["optimizer"])
        self.scaler.load_state_dict(values["scaler"])
        self.step, self.best = int(values["step"]), float(values["best"])
        return True

    def start_from(self, path: Path) -> list[str]:
        """Take the weights of another run's checkpoint, and its proxies where it has them.

        Returns:
            The label columns whose proxies were taken over (last.pt has them, best.pt not).

        Raises:
            TrainingError: another trunk, or other classes in a column.
        """
        values = checkpoint.read(path)
        try:
            self.model.load_state_dict(values["embedder"])
        except (KeyError, RuntimeError) as error:
            raise TrainingError(f"start_from {path} holds another network ({error})") from error
        self.recipe = replace(
            self.recipe, weights=values["recipe"]["weights"], license=values["recipe"]["license"]
        )
        taken = []
        for head in self.heads:
            if head.column not in values.get("heads", {}):
                continue
            if values["classes"][head.column] != self.classes[head.column]:
                raise TrainingError(f"start_from {path} has other classes of {head.column}")
            rows = values["heads"][head.column]["rows"]
            head.load({"rows": rows, "velocity": torch.zeros_like(rows)})
            taken.append(head.column)
        return taken

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
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        for head in self.heads:
            for tensor in head.state().values():
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
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        # A scale that fell is how GradScaler tells that it left the step out.
        return bool(self.scaler.get_scale() >= before)

    def _shared_result(self, shares: list[Tensor], step: int) -> StepResult:
        due = self.rank.first and self.due()
        values = torch.stack([share.detach().double() for share in shares])
        flag = torch.tensor([float(due)], dtype=torch.float64, device=values.device)
        *losses, save = sum_over_ranks(torch.cat([values, flag])).tolist()
        for head, loss in zip(self.heads, losses, strict=True):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss of {head.column} is {loss} at step {step}; lower schedule.rate or "
                    "schedule.proxy_rate, or use precision=fp32"
                )
        return StepResult(losses, save > 0)

    def _network(self, trunk_trains: bool) -> nn.Module:
        if not trunk_trains:
            return self.model.eval()
        self.model.train()
        if self.rank.world == 1:
            return self.model
        if self._parallel is None:
            cuda = self.rank.device.type == "cuda"
            self._parallel = DistributedDataParallel(
                self.model,
                device_ids=[self.rank.device.index] if cuda else None,
                forward_sync_buffers=not self.config.model.frozen_batch_norm,
            )
        return self._parallel

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.rank.device.type, _DTYPES[self.config.precision])

    def _plan(self) -> Plan:
        rows = {task: self.examples.rows_of(task) for task in self.config.data.tasks}
        balanced = None
        if self.config.images_per_class is not None:
            balanced = {}
            for task, numbers in rows.items():
                column = IDENTITY[task]
                if column not in self.numbers:
                    raise TrainingError(f"class-balanced batches of {task} need {column}")
                balanced[task] = self.numbers[column][numbers]
        return Plan(
            rows, self.config.batch, self.config.seed, balanced, self.config.images_per_class
        )

    def _model(self) -> tuple[EmbedderRecipe, UnifiedEmbedder]:
        config = self.config.model
        found = trunk_weights(config.trunk, config.weights, config.license)
        recipe = EmbedderRecipe(
            trunk=config.trunk,
            mean=found.mean,
            std=found.std,
            layer_norm=config.layer_norm,
            fixed_map=config.fixed_map,
            preprocessing=self.preprocessing,
            weights=found.source,
            license=found.license,
        )
        torch.manual_seed(self.config.seed)
        model = recipe.build(config.frozen_batch_norm)
        if found.state is not None:
            load_trunk(model.trunk, found.state, found.source)
        model = model.to(self.rank.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._freeze(model)
        if isinstance(model.fixed_map, FixedMap):
            self._set_map(model, model.fixed_map)
        return recipe, model

    def _freeze(self, model: UnifiedEmbedder) -> None:
        for prefix in self.config.model.frozen:
            named = [p for n, p in model.trunk.named_parameters() if n.startswith(prefix)]
            if not named:
                raise TrainingError(
                    f"model.frozen: no parameter of {self.config.model.trunk} starts with "
                    f"{prefix!r}"
                )
            for parameter in named:
                parameter.requires_grad_(False)

    def _set_map(self, model: UnifiedEmbedder, fixed_map: FixedMap) -> None:
        count = min(_MAP_PICTURES, len(self.examples))
        rows = np.arange(count) * len(self.examples) // count
        features = embed(
            _Pooled(model.eval()), self.examples, rows, self.preprocessing, self.rank.device
        )
        fixed_map.set(features.mean(axis=0), self.config.model.rotation_seed)

    def _heads(self) -> list[ProxyHead]:
        config = self.config
        sgd = Sgd(config.schedule.momentum, config.schedule.weight_decay)
        heads: list[ProxyHead] = []
        for number, (column, found) in enumerate(self.classes.items()):
            seed = _seed(config.seed, number)
            if column in config.sampled:
                file = self.run / f"{column}.bank" if config.bank == "mapped" else None
                heads.append(
                    SampledHead(
                        column,
                        len(found),
                        self.model.dim,
                        config.sampled[column],
                        seed,
                        config.temperature,
                        sgd,
                        self.rank,
                        file,
                    )
                )
            else:
                heads.append(
                    FullHead(
                        column,
                        len(found),
                        self.model.dim,
                        seed,
                        config.temperature,
                        sgd,
                        self.rank,
                    )
                )
        return heads

    def _check_classes(self) -> None:
        for task in self.config.data.tasks:
            rows = self.examples.rows_of(task)
            if not any((self.examples.labels[c][rows] != "").any() for c in self.classes):
                raise TrainingError(f"no training row of the task {task} carries any label")
        unused = set(self.config.sampled) - set(self.classes)
        if unused and set(self.config.data.tasks) == set(IDENTITY):
            raise TrainingError(f"sampled names {sorted(unused)}, of which no row has a label")

    def _check_same_run(self, values: dict[str, Any], path: Path) -> None:
        saved, ours = values["identity"], self.config.identity()
        changed = sorted(k for k in ours if saved.get(k) != ours[k])
        if changed:
            raise TrainingError(
                f"{path} belongs to a run with another {', '.join(changed)}; choose another "
                "run=FOLDER, or delete that folder to start afresh"
            )
        if values["classes"] != self.classes:
            raise TrainingError(f"{path} was trained on other classes; the manifest has changed")

    def _embedder_values(self, figures: dict[str, Any] | None = None) -> dict[str, Any]:
        summary = {
            "tasks": list(self.config.data.tasks),
            "steps": self.step,
            "epochs": self.step / self.plan.steps_per_epoch,
            "batch": self.config.batch,
            "images": {t: len(self.examples.rows_of(t)) for t in self.config.data.tasks},
            "classes": {c: len(found) for c, found in self.classes.items()},
            "sampled": {h.column: h.softmax_classes for h in self.heads},
            "validation": figures or {},
        }
        return checkpoint.embedder_values(self.recipe, self.model.state_dict(), summary)


class _Pooled(nn.Module):
    """The features in front of LayerNorm, as a model of their own."""

    def __init__(self, model: UnifiedEmbedder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.pooled(pixels)


def _seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
