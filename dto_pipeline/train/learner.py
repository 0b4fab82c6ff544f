"""One training step, and evaluation on held-out labels.

If torch.distributed is initialised, gradients and counts are averaged over all processes. Metres, radians.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from dto_pipeline.models.body import BodyModel, read_regressor
from dto_pipeline.train.blocks import CONFIDENT, Known, corners
from dto_pipeline.train.checkpoint import TrainError
from dto_pipeline.train.config import LoopConfig, TrainConfig
from dto_pipeline.train.dataset import TrainBatch
from dto_pipeline.train.losses import compute_losses, generalised_iou, match_people
from dto_pipeline.train.model import MeshNetwork, Predictions, with_joints
from dto_pipeline.train.targets import TREE_JOINTS

MEASURES = {
    "pair_depth_error": "pairwise depth error [m]",
    "near_pair_depth_error": "pairwise depth error, pairs within 1 m [m]",
    "depth_error": "absolute z error [m]",
    "fov_error": "field of view error [rad]",
    "ordinal": "ordinal accuracy at 0.2 m",
    "mpjpe": "MPJPE [m]",
    "recall": "recall",
    "precision": "precision",
}  # keys of `evaluate` and their titles in tables
_REACH = 1.0  # `near_pair_depth_error` is over pairs whose true z differ by at most this [m]
_SAME = 0.2  # people nearer to each other than this in z have the same ordinal depth [m]
_MOST_SKIPPED = 10  # steps in a row without a finite gradient, after which training stops
_HEAD_TOP, _NECK = 3, 2  # rows of J_regressor_extra
Predict = Callable[[TrainBatch], Predictions]  # with joints


@dataclass
class Learner:
    """Network and optimiser."""

    config: TrainConfig
    network: MeshNetwork  # the plain one, for checkpoints and predictions
    body: BodyModel
    device: torch.device
    init: dict[str, Any] = field(default_factory=dict)  # record of the first weights, for checkpoints

    def __post_init__(self) -> None:
        self.network.to(self.device)
        self.body.to(self.device)
        self.optimizer = build_optimizer(self.network, self.config.loop)
        self._shared: nn.Module = self.network
        if distributed.is_initialized():
            devices = [self.device] if self.device.type == "cuda" else None
            # weights of small tokens are unused where no image has any
            self._shared = DistributedDataParallel(self.network, device_ids=devices, find_unused_parameters=True)
        self._skipped_in_a_row = 0
        self._regressor: Tensor | None = None  # (2, V) head top and neck
        if path := self.config.data.regressor:
            rows = read_regressor(path, self.body, "data.regressor")[[_HEAD_TOP, _NECK]]
            self._regressor = torch.from_numpy(rows).float().to(self.device)

    def step(self, batch: TrainBatch, number: int) -> dict[str, float]:
        """Train on one batch; the `number` of the step, from 0, sets the learning rate.

        Returns: the loss, each unweighted loss of the last layer, the gradient's norm before clipping, the rate,
        `skipped_images`: how many could not be read, in all processes, and `skipped_step`: 1 if the gradient was not
        finite and the weights were not changed. Raises: TrainError: no finite gradient in many steps.
        """
        self.network.train()
        rate, config = learning_rate(number, self.config.loop), self.config
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batch = batch.to(self.device)
        targets, known = batch.targets, None
        if config.model.denoising:  # where a body is missing the queries start from zeros, unless as published
            people = torch.cat([targets.poses, targets.betas[:, :10]], dim=-1)
            if not config.loss.as_published:
                people = torch.where(targets.has_body[:, None], people, 0.0)
            known = Known(targets.image, len(batch.images), targets.boxes, people, config.model.denoising)
            torch.manual_seed(((config.loop.seed << 20) + number * count_processes() + own_rank()) % 2**32)  # resumable
        predictions = self._forward(self._shared, batch, known)
        matches = match_people(predictions, targets)
        losses = compute_losses(predictions, targets, matches, config.loss, mean_over_processes, known)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.loop.clip)
        weighted = [name for name, weight in losses.weights.items() if weight and re.fullmatch("[a-z0-9_]+", name)]
        values = {"loss": losses.total, **{name: losses.terms[name] for name in weighted}, "gradient_norm": norm}
        # multiplied by the number of processes, so that the mean below is the sum
        values["skipped_images"] = norm.new_full((), len(batch.skipped) * count_processes())
        means = mean_over_processes(torch.stack([value.detach() for value in values.values()])).tolist()
        row = dict(zip(values, means, strict=True)) | {"rate": rate}
        if math.isfinite(row["gradient_norm"]) and math.isfinite(row["loss"]):
            self.optimizer.step()
            self._skipped_in_a_row = 0
            return row | {"skipped_step": 0.0}
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= _MOST_SKIPPED:
            raise TrainError(
                f"gradients were not finite in {_MOST_SKIPPED} steps in a row; lower loop.rate, or use "
                "loop.precision=float32"
            )
        return row | {"skipped_step": 1.0}

    @torch.no_grad()
    def predict(self, batch: TrainBatch) -> Predictions:
        """The network's output for a batch, without training."""
        self.network.eval()
        return self._forward(self.network, batch.to(self.device))

    def _forward(self, network: nn.Module, batch: TrainBatch, known: Known | None = None) -> Predictions:
        half, centres = self.config.loop.precision == "bfloat16", batch.targets.intrinsics[:, :2, 2]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            found = network(batch.images, centres, known)
        return with_joints(found, self.body, self._regressor, with_all=self._regressor is not None)


def build_optimizer(network: MeshNetwork, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW; the rate of the encoder's weights is multiplied by `encoder_rate`, and 0 freezes them."""
    names = ("encoder.blocks.", "encoder.norm.", "encoder_")  # from a DINOv2, without additional blocks
    encoder = [weight for name, weight in network.named_parameters() if name.startswith(names)]
    others = [weight for name, weight in network.named_parameters() if not name.startswith(names)]
    for weight in encoder:
        weight.requires_grad_(config.encoder_rate > 0)
    groups = [{"params": encoder, "factor": config.encoder_rate}, {"params": others, "factor": 1.0}]
    groups = [group for group in groups if group["factor"]]
    return torch.optim.AdamW(groups, lr=config.rate, weight_decay=config.weight_decay)


def learning_rate(step: int, config: LoopConfig) -> float:
    """A linear rise over `warm_up` steps, then half a cosine down to `last_rate` of the highest rate."""
    if step < config.warm_up:
        return config.rate * (step + 1) / config.warm_up
    share = min(1.0, (step - config.warm_up) / max(1, config.steps - config.warm_up))
    return config.rate * (config.last_rate + (1 - config.last_rate) * (1 + math.cos(math.pi * share)) / 2)


def evaluate(predict: Predict, batches: Iterable[TrainBatch], body: BodyModel) -> dict[str, float]:
    """Means of held-out batches over all processes: `MEASURES`, and numbers of `images`, `skipped_images`, `persons`
    and `pairs`. Every labelled body is compared with the query that matching assigns to it, whatever its confidence, so
    that networks are compared over the same people. `body`: on the device of the predictions."""
    sums = torch.zeros(2 + len(MEASURES), 2, dtype=torch.float64, device=body.faces.device)
    for there in batches:
        batch = there.to(sums.device)
        found = list(_measure(batch, predict(batch), body).values())
        sums[2:] += torch.stack([torch.stack([one.double().sum(), sums.new_tensor(len(one))]) for one in found])
        sums[:2, 0] += sums.new_tensor([sum(key != "" for key in batch.image_ids), len(batch.skipped)])
    (images, _), (skipped, _), *pairs = (mean_over_processes(sums) * count_processes()).tolist()
    row = {"images": images, "skipped_images": skipped}
    if not images:
        return row
    means = dict(zip(MEASURES, pairs, strict=True))
    row |= {"persons": means["mpjpe"][1], "pairs": means["ordinal"][1]}
    return row | {name: total / count if count else math.nan for name, (total, count) in means.items()}


def _measure(batch: TrainBatch, predictions: Predictions, body: BodyModel) -> dict[str, Tensor]:
    """The values (n,) of each of `MEASURES` in a batch: of people, of pairs of one image, of images with a camera."""
    targets = batch.targets
    matches = match_people(predictions, targets)
    kept = targets.has_body[matches.person[-1]]
    image, query, person = (part[-1][kept] for part in matches[1:])
    found = (-1, image, query)
    assert predictions.j3ds is not None
    joints, true = (j[:, :TREE_JOINTS] - j[:, :1] for j in (predictions.j3ds[found], targets.j3ds[person]))
    overlap = generalised_iou(corners(predictions.boxes[found]), corners(targets.boxes[person])) > 0
    z, true_z = predictions.transl[found][:, 2], targets.transl[person][:, 2]
    i, j = torch.triu_indices(len(image), len(image), 1, device=image.device)
    together = image[i] == image[j]
    apart, true_apart = (one[i[together]] - one[j[together]] for one in (z, true_z))
    order, true_order = (torch.sign(d) * (d.abs() >= _SAME) for d in (apart, true_apart))
    known, focals = targets.image_focals > 0, (predictions.intrinsics[:, 0, 0], targets.image_focals)
    fov, true_fov = (2 * torch.atan(targets.heights[known] / 2 / focal[known]) for focal in focals)
    right = (predictions.confs[found] >= CONFIDENT) & overlap
    read = torch.tensor([key != "" for key in batch.image_ids], device=image.device)  # others are black stand-ins
    wrong = int(((predictions.confs[-1] >= CONFIDENT) & read[:, None]).sum() - right.sum())
    return {
        "pair_depth_error": (apart - true_apart).abs(),
        "near_pair_depth_error": (apart - true_apart).abs()[true_apart.abs() <= _REACH],
        "depth_error": (z - true_z).abs(),
        "fov_error": (fov - true_fov).abs(),
        "ordinal": (order == true_order).float(),
        "mpjpe": (joints - true).norm(dim=-1).mean(-1),
        "recall": right.float(),
        "precision": functional.pad(right[right].float(), (0, max(0, wrong))),
    }


def mean_over_processes(numbers: Tensor) -> Tensor:
    """Mean of numbers over the processes that share a step; in a single one the numbers themselves."""
    if not distributed.is_initialized():
        return numbers
    shared = numbers.clone()
    distributed.all_reduce(shared)
    return shared / count_processes()


def count_processes() -> int:
    """Number of processes that share a step."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own_rank() -> int:
    """Rank of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def broadcast_from_rank_0(value: Any) -> Any:
    """The value of rank 0, in all processes."""
    values: list[Any] = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values, 0)
    return values[0]
