"""One step of learning: a batch in, changed weights and the losses out. The same in one process and in many.

Knows network, losses and optimiser; knows neither files nor Ray. Where torch.distributed is up, gradients and counts
are averaged over all processes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from dto_pipeline.array_files import read_npy
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel
from dto_pipeline.reading import open_regular
from dto_pipeline.train.blocks import Known
from dto_pipeline.train.config import LoopConfig, TrainConfig
from dto_pipeline.train.dataset import TrainBatch
from dto_pipeline.train.losses import compute_losses
from dto_pipeline.train.matching import match_people
from dto_pipeline.train.model import MeshNetwork, Predictions, with_joints

T = TypeVar("T")
_LAST = re.compile(r"[a-z0-9_]+$")  # terms of the last layer
_MOST_SKIPPED = 10  # steps in a row without a finite gradient, after which training stops
_HEAD_TOP, _NECK = 3, 2  # rows of J_regressor_extra


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
        if distributed.is_initialized():
            devices = [self.device] if self.device.type == "cuda" else None
            # where no image has small tokens, their weights learn nothing
            self._shared = DistributedDataParallel(self.network, device_ids=devices, find_unused_parameters=True)
        self._skipped_in_a_row = 0
        self._regressor = read_regressor(self.config.data.regressor, self.body)

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
        predictions = self._pose(predictions)
        matches = match_people(predictions, batch.targets)
        losses = compute_losses(predictions, batch.targets, matches, self.config.loss, mean_over_processes, known)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.loop.clip)
        last = {name: losses.terms[name] for name, weight in losses.weights.items() if weight and _LAST.match(name)}
        values = {"loss": losses.total, **last, "gradient_norm": norm}
        # times the processes: the mean below is then the sum
        values["skipped_images"] = norm.new_full((), len(batch.skipped) * count_processes())
        means = mean_over_processes(torch.stack([value.detach() for value in values.values()])).tolist()
        told = dict(zip(values, means, strict=True))
        skipped = self._update(math.isfinite(told["gradient_norm"]) and math.isfinite(told["loss"]))
        return told | {"rate": rate, "skipped_step": float(skipped)}

    @torch.no_grad()
    def predict(self, batch: TrainBatch) -> Predictions:
        """What the network says of a batch, without learning."""
        self.network.eval()
        batch = batch.to(self.device)
        with self._autocast():
            predictions = self.network(batch.images, **self._ways(batch))
        return self._pose(predictions)

    def _pose(self, predictions: Predictions) -> Predictions:
        return with_joints(predictions, self.body, self._regressor, with_all=self._regressor is not None)

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
    groups: list[dict[str, Any]] = [
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


def read_regressor(path: str, body: BodyModel) -> torch.Tensor | None:
    """(2, V) head top and neck of J_regressor_extra.npy, None where it is not named. Raises: DtoError."""
    if not path:
        return None

    def check(_: str, shape: tuple[int, ...], kind: np.dtype) -> None:
        if shape != (9, body.num_vertices) or kind.kind != "f":
            raise ValueError(f"it holds {kind} of shape {shape}; expected (9, {body.num_vertices}), as the body model")

    try:
        with open_regular(path) as stream:
            found = read_npy(stream, check)
    except (OSError, ValueError) as error:
        raise DtoError(f"data.regressor {path} cannot be used: {error}; give J_regressor_extra.npy") from error
    return torch.from_numpy(found[[_HEAD_TOP, _NECK]]).float().to(body.faces.device)


def mean_over_processes(numbers: torch.Tensor) -> torch.Tensor:
    """Mean of (n,) numbers over the processes that share a step; in a single one the numbers themselves."""
    if not distributed.is_initialized():
        return numbers
    shared = numbers.clone()
    distributed.all_reduce(shared)
    return shared / count_processes()


def count_processes() -> int:
    """How many share a step."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own_rank() -> int:
    """Which of them this one is."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def broadcast_from_rank_0(value: T) -> T:
    """What rank 0 says, in all processes."""
    if not distributed.is_initialized():
        return value
    said: list[Any] = [value]
    distributed.broadcast_object_list(said, 0)
    return said[0]
