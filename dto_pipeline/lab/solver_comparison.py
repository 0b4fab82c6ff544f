"""Solvers against a known truth: the labels as given, the height prior alone, the published fit, the joint fit.

Scenes with truth in, numbers out; knows no generator and writes no files (`solver_report` does). "Height prior"
scales every label to its prior height (adults: the mean of the label's height and the class's) without any depth.
"Paper, else prior" is the published fit, and the height prior for whoever it leaves where the label had them.
"True line" is no solver: everybody stands where its own measured depth says, on the line the depth map was made with;
it shows how much of an error is the depth map's own. All measures are over all people, accepted or not, unless said.
Metres.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from dto_pipeline.axes import KID_AXIS, MEAN
from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.placed import unpack_covariance
from dto_pipeline.evaluate.placements import Placement, join_placements, placement_errors
from dto_pipeline.maths.refine import KID_SHIFT_JOINTS
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import PLACED

METHODS = ("labels", "height prior", "paper", "paper, else prior", "joint", "true line")
LEVELS = {0.50: 0.6745, 0.80: 1.2816, 0.95: 1.9600}  # share of a normal law within so many sigmas
_BATCH = 8  # scenes placed together
_LOSSES_SHOWN = 3  # images named where the joint fit is worse
_RESAMPLES = 400  # of images, for the noise of a difference


@dataclass(frozen=True)
class KnownScene:
    """What a solver is told, and what is true of the same P people."""

    scene: Scene
    z: np.ndarray  # (P,) float64 true z of the translation [m]
    height: np.ndarray  # (P,) float64 true height in the rest pose [m]
    line: tuple[float, float]  # a, b of the disparity a / z + b that the depth map was made from


Place = Callable[[Sequence[KnownScene]], list[tuple[PlacedScene, Placement]]]


@dataclass(frozen=True)
class Outcome:
    """One method on N people of several images; arrays share the axis."""

    placement: Placement
    accepted: np.ndarray  # (N,) bool: the image was accepted
    shift: np.ndarray  # (N,) mean distance of joints from where the label's are in the image [px]
    placed: list[PlacedScene]  # one per image
    seconds: float  # of processor time per image
    on_line: Placement  # where `true line` puts the same people


def place_all(known: Sequence[KnownScene], body: BodyModel, config: PipelineConfig, mode: str) -> Outcome:
    """Every scene placed by one solver."""
    return collect(known, partial(place_scenes, body=body, config=with_mode(config, mode)), body)


def with_mode(config: PipelineConfig, mode: str) -> PipelineConfig:
    """The config with another `solver.mode`."""
    return replace(config, solver=replace(config.solver, mode=mode))


def place_scenes(
    known: Sequence[KnownScene], body: BodyModel, config: PipelineConfig
) -> list[tuple[PlacedScene, Placement]]:
    """What a shard runner does with scenes that have no problem; and where their true lines put the people."""
    scenes = [item.scene for item in known]
    optimized = SceneOptimizer(body, config)(collate_scenes(scenes))
    evidence = optimized.evidence
    measures = torch.stack([evidence.depth[..., MEAN], evidence.z[..., MEAN], optimized.prior.height], -1).numpy()
    lines = [_on_true_line(item, found[: item.scene.num_people]) for item, found in zip(known, measures, strict=True)]
    return list(zip(split_batch(scenes, optimized, config), lines, strict=True))


def _on_true_line(item: KnownScene, measures: np.ndarray) -> Placement:
    """`measures`: (P, 3) mean depth, mean z of the label [m], label height [m]; those not measured stand right."""
    depth, label_z, height = measures.T
    scale, offset = item.line
    factor = scale / (1 / depth - offset) / label_z
    known = np.isfinite(factor) & (factor > 0)
    z = np.where(known, item.scene.transl[:, 2] * factor, item.z)
    return Placement(z, np.where(known, height * factor, item.height))


def collect(known: Sequence[KnownScene], place: Place, body: BodyModel | Sequence[BodyModel]) -> Outcome:
    """Place all scenes, in batches; `body`: one for all, or one per scene, for the shift in the image."""
    begun = time.process_time()
    placed: list[PlacedScene] = []
    lines: list[Placement] = []
    for start in range(0, len(known), _BATCH):
        for item, line in place(known[start : start + _BATCH]):
            placed.append(item)
            lines.append(line)
    seconds = (time.process_time() - begun) / max(len(known), 1)
    bodies = [body] * len(placed) if isinstance(body, BodyModel) else body
    return Outcome(
        placement=join_placements([_placement(item) for item in placed]),
        accepted=np.concatenate([np.full(item.scene.num_people, item.is_accepted) for item in placed]),
        shift=np.concatenate([image_shift(item, model) for item, model in zip(placed, bodies, strict=True)]),
        placed=placed,
        seconds=seconds,
        on_line=join_placements(lines),
    )


def pool_outcomes(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of several sets as one; seconds are averaged over images."""
    images = [len(outcome.placed) for outcome in outcomes]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(outcome, name) for outcome in outcomes])

    def placements(name: str) -> Placement:
        return join_placements([getattr(outcome, name) for outcome in outcomes])

    return Outcome(
        placement=placements("placement"),
        accepted=joined("accepted"),
        shift=joined("shift"),
        placed=[placed for outcome in outcomes for placed in outcome.placed],
        seconds=float(np.average([outcome.seconds for outcome in outcomes], weights=images)),
        on_line=placements("on_line"),
    )


def compare_outcomes(known: Sequence[KnownScene], paper: Outcome, joint: Outcome) -> dict[str, Any]:
    """JSON-ready numbers of all methods on one set.

    Returns:
        `images`, `people`, `methods` (method -> errors over all people, over people of accepted images, share accepted
        ...), `noise` (measure -> standard error of joint - paper over images), `coverage` (what -> level -> share
        inside), `losses` (images where joint is worse, worst first).
    """
    truth = join_placements(known)
    image = np.repeat(np.arange(len(known)), [item.scene.num_people for item in known])
    labels, by_prior = label_and_prior(paper.placed)
    nobody = np.zeros(len(image), bool)
    solved = (paper.placement, paper.accepted), (joint.placement, joint.accepted)
    filled = paper_else_prior(paper)
    shares = (labels, nobody), (by_prior, nobody), solved[0], (filled, nobody), solved[1], (joint.on_line, nobody)
    methods: dict[str, Any] = {
        name: {
            **placement_errors(found, truth, image),
            "accepted_share": float(accepted.mean()),
            "accepted": placement_errors(found, truth, image, accepted),
        }
        for name, (found, accepted) in zip(METHODS, shares, strict=True)
    }
    for name, outcome in (("paper", paper), ("joint", joint)):
        moved = np.concatenate([item.beta_index for item in outcome.placed])
        methods[name] |= {
            "shift_px": float(outcome.shift.mean()),
            "kid_shift_px": float(outcome.shift[moved == KID_AXIS].mean()) if (moved == KID_AXIS).any() else 0.0,
            "seconds_per_image": outcome.seconds,
        }
    chosen = [item.depth_model for item in joint.placed if item.depth_model is not None]
    return {
        "images": len(known),
        "people": len(image),
        "methods": methods,
        "noise": _noise_of_difference(paper.placement, joint.placement, truth, image),
        "coverage": {what: cover(values) for what, values in normalised_errors(known, joint).items()},
        "affine_disparity_share": float(np.mean([word == "affine_disparity" for word in chosen])) if chosen else 0.0,
        "losses": _losses(known, paper, joint),
    }


def label_and_prior(placed: Sequence[PlacedScene]) -> tuple[Placement, Placement]:
    """Everybody as the label has them, and scaled to their prior height without any depth; (n,) end to end."""
    z = np.concatenate([item.scene.transl[:, 2] for item in placed]).astype(np.float64)
    height = np.concatenate([item.height_init_m for item in placed]).astype(np.float64)
    factor = np.concatenate([item.prior_mean_m / item.height_init_m for item in placed])
    return Placement(z, height), Placement(z * factor, height * factor)


def moved_people(outcome: Outcome) -> np.ndarray:
    """(N,) bool: whom a solver moved."""
    return np.concatenate([[status in PLACED for status in item.person_status] for item in outcome.placed])


def paper_else_prior(paper: Outcome) -> Placement:
    """The published fit, and the height prior alone for whoever it leaves: what is fair to compare `joint` with."""
    _, prior = label_and_prior(paper.placed)
    moved = moved_people(paper)
    found = paper.placement
    return Placement(np.where(moved, found.z, prior.z), np.where(moved, found.height, prior.height))


def normalised_errors(known: Sequence[KnownScene], joint: Outcome) -> dict[str, np.ndarray]:
    """Errors over the sigmas the labels claim: of z, of differences of z within an image, of heights."""
    parts: dict[str, list[np.ndarray]] = {"z": [], "pairs": [], "height": []}
    for item, placed in zip(known, joint.placed, strict=True):
        if placed.z_covariance is None:
            continue
        people = item.scene.num_people
        covariance = unpack_covariance(placed.z_covariance, people)
        miss = placed.transl[:, 2] - item.z
        variance = covariance.diagonal()
        first, second = np.tril_indices(people, -1)
        apart = variance[first] + variance[second] - 2 * covariance[first, second]
        parts["z"].append(miss / placed.z_sigma_m)
        parts["pairs"].append((miss[first] - miss[second]) / np.sqrt(apart))
        parts["height"].append((placed.height_m - item.height) / placed.height_sigma_m)
    joined = {what: np.concatenate(values) if values else np.zeros(0) for what, values in parts.items()}
    return {what: values[np.isfinite(values)] for what, values in joined.items()}


def cover(normalised: np.ndarray) -> dict[str, float]:
    """Share of errors inside the central 50, 80 and 95 % intervals; NaN without errors."""
    inside = {level: np.abs(normalised) < reach for level, reach in LEVELS.items()}
    return {f"{level:.2f}": float(hits.mean()) if len(hits) else float("nan") for level, hits in inside.items()}


def image_shift(placed: PlacedScene, body: BodyModel) -> np.ndarray:
    """(P,) mean distance in the image [px] between the joints of each new body and those of its label."""
    scene = placed.scene
    pose = torch.from_numpy(scene.pose)

    def pixels(betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
        joints = body.joints(pose, torch.from_numpy(betas), torch.from_numpy(transl)).numpy()[:, list(KID_SHIFT_JOINTS)]
        focal = scene.intrinsics[[0, 1], [0, 1]]
        return joints[..., :2] / joints[..., 2:] * focal

    moved = pixels(placed.betas, placed.transl) - pixels(scene.betas, scene.transl)
    return np.linalg.norm(moved, axis=-1).mean(-1)


def _placement(placed: PlacedScene) -> Placement:
    height = np.where(np.isnan(placed.height_m), placed.height_init_m, placed.height_m)
    return Placement(placed.transl[:, 2].astype(np.float64), height.astype(np.float64))


def _noise_of_difference(paper: Placement, joint: Placement, truth: Placement, image: np.ndarray) -> dict[str, float]:
    """Standard error of (joint - paper) of the mean z and height errors, from resampled images."""
    rng = np.random.default_rng(0)
    images = int(image.max()) + 1
    chosen = rng.integers(0, images, (_RESAMPLES, images))
    people = np.bincount(image, minlength=images)
    noise = {}
    for name, measure in (("depth_error", "z"), ("height_error", "height")):
        found, other, true = (getattr(item, measure) for item in (joint, paper, truth))
        gap = np.bincount(image, np.abs(found - true) - np.abs(other - true), images)
        noise[name] = float(np.std(gap[chosen].sum(1) / people[chosen].sum(1).clip(1)))
    return noise


def _losses(known: Sequence[KnownScene], paper: Outcome, joint: Outcome) -> list[dict[str, Any]]:
    """The images where the joint fit's mean z error exceeds the published fit's by most, with what explains them."""
    found: list[dict[str, Any]] = []
    for item, before, after in zip(known, paper.placed, joint.placed, strict=True):
        worse = float(np.abs(after.transl[:, 2] - item.z).mean() - np.abs(before.transl[:, 2] - item.z).mean())
        if worse > 0:
            found.append({"image": item.scene.image_id, "worse_by_m": worse, "because": _explain(item, after)})
    found.sort(key=lambda loss: -loss["worse_by_m"])
    return [{"images_worse": len(found)}, *found[:_LOSSES_SHOWN]] if found else []


def _explain(item: KnownScene, after: PlacedScene) -> str:
    """What a losing image has that misleads: people unlike their priors together, one by one, or wrong depths."""
    unlike = np.log(item.height / after.prior_mean_m)
    measured = np.isfinite(after.depth_mean)
    line = np.log(item.z / np.where(measured, after.depth_mean, np.nan))
    depth = np.abs(line - np.nanmedian(line)) if measured.any() else np.zeros(1)
    together = float(np.mean(unlike))
    if abs(together) > 0.03:
        return f"its {len(unlike)} people are together {100 * together:+.0f} % off their priors' heights"
    if np.nanmax(depth) > 0.08:
        return f"one depth is {100 * np.nanmax(depth):.0f} % off the others' line"
    return f"one person is {100 * unlike[np.abs(unlike).argmax()]:+.0f} % off its prior's height"
