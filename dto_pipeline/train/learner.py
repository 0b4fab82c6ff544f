"""One step of learning: a batch in, changed weights and the losses out. The same in one process and in many.

Knows network, losses and optimiser; knows neither files nor Ray. Where torch.distributed is up, gradients and counts
are averaged over all processes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.config import LoopConfig, TrainConfig
from dto_pipeline.train.denoising import Known
from dto_pipeline.train.losses import compute_losses
from dto_pipeline.train.matching import match_people
from dto_pipeline.train.model import MeshNetwork, Predictions, with_joints

T = TypeVar("T")
_LAST = re.compile(r"[a-z0-9_]+$")  # terms of the last layer
_MOST_SKIPPED = 10  # steps in a row without a finite gradient, after which training stops


class TrainingDiverged(DtoError, RuntimeError):
    """Gradients are not finite any more."""


@dataclass
class Learner:
    """Network, optimiser and how many steps in a row were skipped."""

    config: TrainConfig
    network: MeshNetwork  # the plain one, for checkpoints and predictions
    body: BodyModel
    device: torch.device
    init: dict[str, Any] = field(default_factory=dict)  # what the network began with, for checkpoints

    def __post_init__(self) -> None:
        self.network.to(self.device)
        self.body.to(self.device)
        self.optimizer = build_optimizer(self.network, self.config.loop)
        self._shared: nn.Module = self.network
        if torch.distributed.is_initialized():
            devices = [self.device] if self.device.type == "cuda" else None
            self._shared = DistributedDataParallel(
                self.network,
                device_ids=devices,
                find_unused_parameters=True,  # no small tokens in a batch: their weights learn nothing
            )
        self._skipped_in_a_row = 0

    def step(self, batch: TrainBatch, number: int) -> dict[str, float]:
        """Learn from one batch.

        Args:
            batch: images and labels, anywhere.
            number: of the step, from 0; sets the learning rate.

        Returns:
            The loss, each unweighted loss of the last layer, the gradient's norm before clipping, the learning rate,
            `skipped_images`: how many could not be read, in all processes, and `skipped_step`: 1 if the gradient was
            not finite and the weights were left alone.

        Raises:
            TrainingDiverged: no finite gradient in many steps.
        """
        self.network.train()
        rate = learning_rate(number, self.config.loop)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batch = batch.to(self.device)
        known = self._known(batch)
        with self._autocast():
            predictions: Predictions = self._shared(batch.images, **self._ways(batch), known=known)
        predictions = with_joints(predictions, self.body)
        matches = match_people(predictions, batch.targets, self.config.match)
        losses = compute_losses(predictions, batch.targets, matches, self.config.loss, mean_over_processes, known)
        total = losses.total
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.loop.clip)
        whole = mean_over_processes(total.detach()[None])  # all processes skip a step, or none
        skipped = self._update(bool(norm.isfinite() & whole.isfinite().all()))
        last = {
            name: losses.terms[name].detach() for name, weight in losses.weights.items() if weight and _LAST.match(name)
        }
        values = {"loss": total.detach(), **last, "gradient_norm": norm.detach()}
        # times the processes: the mean below is then the sum
        values["skipped_images"] = total.new_tensor(float(len(batch.skipped) * count_processes()))
        means = mean_over_processes(torch.stack(list(values.values()))).tolist()
        return dict(zip(values, means, strict=True)) | {"rate": rate, "skipped_step": float(skipped)}

    @torch.no_grad()
    def predict(self, batch: TrainBatch) -> Predictions:
        """What the network says of a batch, without learning."""
        self.network.eval()
        batch = batch.to(self.device)
        with self._autocast():
            return with_joints(self.network(batch.images, **self._ways(batch)), self.body)

    def _ways(self, batch: TrainBatch) -> dict[str, Any]:
        """How the config wants the network to look."""
        model = self.config.model
        centres = batch.centres if model.principal_point == "true" else None
        return {"centres": centres, "by_image": model.prune_by_image}

    def _known(self, batch: TrainBatch) -> Known | None:
        """The people that denoising queries start from; what is no label of them is 0 there, unless as published."""
        targets = batch.targets
        if not self.config.model.denoising or not len(targets.image):
            return None
        body = torch.cat([targets.poses, targets.betas[:, :10]], dim=-1)
        if not self.config.loss.denoise_untrusted:
            body = torch.where(targets.has_body[:, None], body, 0.0)
        return Known(targets.image, len(batch.images), targets.boxes, body, self.config.model.denoising)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.loop.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _update(self, finite: bool) -> bool:
        """Change the weights, unless the gradient is not finite; says whether the step was skipped."""
        if finite:
            self.optimizer.step()
            self._skipped_in_a_row = 0
            return False
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= _MOST_SKIPPED:
            raise TrainingDiverged(
                f"gradients were not finite in {_MOST_SKIPPED} steps in a row; lower loop.rate, or use "
                "loop.precision=float32"
            )
        return True


def build_optimizer(network: MeshNetwork, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW; the encoder's weights learn `encoder_rate` times as fast, and are left as they are where that is 0."""
    names = ("encoder.blocks.", "encoder.norm.", "encoder_")  # what a DINOv2 begins; additional blocks always learn
    encoder: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in network.named_parameters():
        own = name.startswith(names)
        weight.requires_grad_(not own or config.encoder_rate > 0)
        (encoder if own and config.encoder_rate > 0 else [] if own else others).append(weight)
    groups: Sequence[dict] = [
        {"params": encoder, "factor": config.encoder_rate},
        {"params": others, "factor": 1.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.rate, weight_decay=config.weight_decay)


def learning_rate(step: int, config: LoopConfig) -> float:
    """A linear rise over `warm_up` steps, then half a cosine down to `last_rate` of the highest rate."""
    if step < config.warm_up:
        return config.rate * (step + 1) / config.warm_up
    share = min(1.0, (step - config.warm_up) / max(1, config.steps - config.warm_up))
    return config.rate * (config.last_rate + (1 - config.last_rate) * (1 + math.cos(math.pi * share)) / 2)


def mean_over_processes(numbers: torch.Tensor) -> torch.Tensor:
    """Mean of (n,) numbers over the processes that share a step; in a single one the numbers themselves."""
    if not torch.distributed.is_initialized():
        return numbers
    shared = numbers.clone()
    torch.distributed.all_reduce(shared)
    return shared / count_processes()


def count_processes() -> int:
    """How many share a step."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the only process, or the first of those that share a step."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def told_by_first(number: int, device: torch.device) -> int:
    """What the first process says, in all of them."""
    if not torch.distributed.is_initialized():
        return number
    said = torch.tensor([number], device=device)
    torch.distributed.broadcast(said, 0)
    return int(said)


def gather_at_first(part: list[T]) -> list[T]:
    """The lists of all processes, joined in the order of ranks, in the first process; nothing in the others."""
    if not torch.distributed.is_initialized():
        return part
    first = torch.distributed.get_rank() == 0
    shares: list[list[T]] = [[]] * count_processes()
    torch.distributed.gather_object(part, shares if first else None)
    return [one for share in shares for one in share] if first else []
