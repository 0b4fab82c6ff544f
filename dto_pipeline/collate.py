"""Between scenes (one image each, numpy, ragged) and batches (tensors, padded): the only place that pads and unpads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from dto_pipeline.acceptance import Acceptance, read_acceptance
from dto_pipeline.axes import BABY, TEEN
from dto_pipeline.bounds import CAMERA_BEYOND, implausible_cameras, name_beyond
from dto_pipeline.config import PipelineConfig
from dto_pipeline.maths.camera import map_size
from dto_pipeline.maths.line_posterior import DEPTH_MODELS
from dto_pipeline.models.depth import is_metric
from dto_pipeline.scene import (
    OUTCOMES,
    DepthEvidence,
    GroupFits,
    HeightPrior,
    OptimizedScenes,
    PlacedScene,
    RefinedPeople,
    Scene,
    SceneBatch,
)
from dto_pipeline.status import ImageStatus, PersonStatus

_MEAN_OF_NORMAL = math.sqrt(2 / math.pi)  # of |x|, in standard deviations
_UNMEASURED = (PersonStatus.TOO_SMALL, PersonStatus.PLACED_BY_PRIOR)
# fields of `PlacedScene` that are NaN, or -1, where nothing was computed
_UNKNOWN = (
    *("height_init_m", "height_m", "prior_mean_m", "prior_sigma_m", "depth_mean", "depth_std", "slope", "corr"),
    "z_sigma_m",
)
_NONE: dict[str, type] = {"beta_index": np.int32, "height_class": np.int32, "depth_group": np.int8}
__all__ = ["collate_scenes", "keep_labels", "map_size", "split_batch"]


def collate_scenes(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> SceneBatch:
    """Pad scenes that can be optimised (no `problem`, masks and disparity filled) into one batch on `device`."""
    people = max(scene.num_people for scene in scenes)
    height, width = (max(getattr(scene, side) for scene in scenes) for side in ("height", "width"))
    map_sizes = np.array([scene.masks.shape[1:] for scene in scenes])  # type: ignore[union-attr]
    map_height, map_width = map_sizes.max(0)
    usable = [np.array([problem is None for problem in scene.person_problem], bool) for scene in scenes]

    def pad(values: Sequence[np.ndarray], shape: tuple[int, ...], dtype: type) -> torch.Tensor:
        out: np.ndarray = np.zeros((len(scenes), *shape), dtype)
        for row, value in zip(out, values, strict=True):
            row[tuple(slice(0, side) for side in value.shape)] = value
        return _upload(out, device)

    def label(name: str, *shape: int) -> torch.Tensor:
        values = (
            np.where(_column(ok, len(shape)), getattr(scene, name), 0) for scene, ok in zip(scenes, usable, strict=True)
        )
        return pad(list(values), (people, *shape), np.float32)

    return SceneBatch(
        pose=label("pose", 72),
        betas=label("betas", 11),
        transl=label("transl", 3),
        intrinsics=pad([scene.intrinsics for scene in scenes], (3, 3), np.float64),
        age_years=label("age_years"),
        male_prob=label("male_prob"),
        present=pad(usable, (people,), np.bool_),
        masks=pad([scene.masks for scene in scenes], (people, map_height, map_width), np.bool_),  # type: ignore[misc]
        disparity=(
            _gather(scenes, (height, width), device)
            if scenes[0].disparity is None
            else pad([scene.disparity for scene in scenes], (height, width), np.float32)  # type: ignore[misc]
        ),
        metric=_upload(np.array([is_metric(scene.origin.get("depth")) for scene in scenes]), device),
        image_size=_upload(np.array([[scene.height, scene.width] for scene in scenes]), device),
        map_size=_upload(map_sizes, device),
    )


def split_batch(scenes: Sequence[Scene], optimized: OptimizedScenes, config: PipelineConfig) -> list[PlacedScene]:
    """Undo `collate_scenes` on the results: one `PlacedScene` per scene, everything on the CPU."""
    # from a GPU in one go: every copy is begun before any is waited for
    results = _Results(
        optimized.evidence.to("cpu", non_blocking=True),
        optimized.prior.to("cpu", non_blocking=True),
        optimized.people.to("cpu", non_blocking=True),
        optimized.maps.visible_vertices.to("cpu", non_blocking=True),
    )
    if optimized.maps.visible_vertices.is_cuda:
        torch.cuda.current_stream(optimized.maps.visible_vertices.device).synchronize()
    rule = read_acceptance(config.to_dict())
    placed = [_placed(scene, index, results, config) for index, scene in enumerate(scenes)]
    for item in placed:
        item.is_accepted = _is_accepted(item, rule)
    return placed


def keep_labels(scene: Scene) -> PlacedScene:
    """A scene that was not optimised, with its labels as given and a status for the image and every person."""
    people = scene.num_people
    unknown: dict[str, Any] = {name: np.full(people, np.nan, np.float32) for name in _UNKNOWN}
    none: dict[str, Any] = {name: np.full(people, -1, dtype) for name, dtype in _NONE.items()}
    status, message = scene.problem or (ImageStatus.NO_PEOPLE if people == 0 else ImageStatus.TOO_FEW_PEOPLE, None)
    person_status, person_message = _person_problems(scene, [PersonStatus.NOT_RUN] * people)
    return PlacedScene(
        scene=scene,
        status=status,
        message=message,
        person_status=person_status,
        person_message=person_message,
        betas=scene.betas,
        transl=scene.transl,
        scale=np.ones(people, np.float32),
        mask_pixels=np.zeros(people, np.int32),
        visible_vertices=np.zeros(people, np.int32),
        **unknown,
        **none,
    )


def _upload(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """An array on a device; to a GPU from pinned memory, so that the copy runs while the next one is padded."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _gather(scenes: Sequence[Scene], shape: tuple[int, int], device: torch.device | str) -> torch.Tensor:
    """The maps that a network left on the device, padded there: they never see the host."""
    batch = torch.zeros(len(scenes), *shape, device=device)
    for row, scene in zip(batch, scenes, strict=True):
        assert scene.disparity_there is not None
        row[: scene.height, : scene.width] = scene.disparity_there
        if batch.is_cuda:  # made on the network's stream: not to be overwritten there before it is copied here
            scene.disparity_there.record_stream(torch.cuda.current_stream(batch.device))
    return batch


class _Results(NamedTuple):
    """What label rows are made of; maps and images stay where they are."""

    evidence: DepthEvidence
    prior: HeightPrior
    people: RefinedPeople
    visible_vertices: torch.Tensor


def _placed(scene: Scene, index: int, results: _Results, config: PipelineConfig) -> PlacedScene:
    people, fits, evidence = results.people, results.people.fits, results.evidence
    count = scene.num_people
    outcomes = [OUTCOMES[code] for code in fits.outcome[index, :count].tolist()]
    refused = np.array([word is PersonStatus.INVALID_LABEL for word in outcomes], bool)
    usable = np.array([problem is None for problem in scene.person_problem], bool) & ~refused

    def of(value: torch.Tensor, dtype: type = np.float32, missing: float = np.nan) -> np.ndarray:
        return np.where(usable, value[index, :count].numpy(), missing).astype(dtype)

    by_prior = PersonStatus.PLACED_BY_PRIOR in outcomes
    status = _image_status(usable, bool(fits.is_optimized[index]), by_prior)
    person_status, person_message = _person_problems(
        scene, outcomes, _explain_unmeasured(scene, index, results, config)
    )
    label = _column(usable, 1)
    placed = PlacedScene(
        scene=scene,
        status=status,
        message=None,
        person_status=person_status,
        person_message=person_message,
        betas=np.where(label, people.betas[index, :count].numpy(), scene.betas).astype(np.float32),
        transl=np.where(label, people.transl[index, :count].numpy(), scene.transl).astype(np.float32),
        scale=of(people.scale, missing=1),
        beta_index=of(people.beta_index, np.int32, -1),
        height_class=of(results.prior.height_class, np.int32, -1),
        height_init_m=of(results.prior.height),
        height_m=of(people.height),
        prior_mean_m=of(results.prior.mean),
        prior_sigma_m=of(results.prior.sigma),
        depth_mean=of(evidence.depth[..., 0]),
        depth_std=of(evidence.depth_std),
        slope=of(evidence.slope),
        corr=of(evidence.corr),
        mask_pixels=of(evidence.pixels[..., 0], np.int32, 0),
        visible_vertices=of(results.visible_vertices, np.int32, 0),
        depth_group=of(evidence.group, np.int8, -1),
        is_optimized=bool(fits.is_optimized[index]),
        deviation=float(fits.deviation[index]),
        alpha=(float(fits.alpha[index, 0]), float(fits.alpha[index, 1])),
        beta=(float(fits.beta[index, 0]), float(fits.beta[index, 1])),
        used_ground=bool(fits.used_ground[index]),
        **_certainty(fits, index, usable),
    )
    return placed if scene.same_as is None else _take_along(placed, scene.same_as)


def _is_accepted(placed: PlacedScene, rule: Acceptance) -> bool:
    error = np.nan if placed.expected_error is None else placed.expected_error
    accepted = rule.judge(
        np.array([placed.is_optimized]),
        np.array([placed.deviation], np.float32),
        np.array([error], np.float32),
        np.zeros(placed.scene.num_people, np.int64),
        placed.transl[:, 2],
        placed.z_sigma_m,
        placed.height_m,
        (placed.height_class >= BABY) & (placed.height_class <= TEEN),
    )
    return bool(accepted[0])


def _take_along(placed: PlacedScene, same_as: np.ndarray) -> PlacedScene:
    """Whoever repeats a person, `same_as` (P,) or -1, goes where that person goes: nobody stands away from himself.

    The same factor on the distance, the same step of the same shape coefficient; nothing else is known of them.
    """
    copies = np.flatnonzero(same_as >= 0)
    own, scene = same_as[copies], placed.scene
    scale = placed.scale[own].astype(np.float64)[:, None]
    shift = placed.transl[own] - scale * scene.transl[own]  # what keeps the joints in the picture
    placed.transl[copies] = scale * scene.transl[copies] + shift
    placed.betas[copies] = scene.betas[copies] + (placed.betas[own] - scene.betas[own])
    placed.scale[copies], placed.beta_index[copies] = placed.scale[own], placed.beta_index[own]
    return placed


def _certainty(fits: GroupFits, index: int, usable: np.ndarray) -> dict[str, Any]:
    """What the joint solver knows beyond places; the published one says nothing."""
    found, count = fits.posterior, len(usable)
    if found is None:
        return {"z_sigma_m": np.full(count, np.nan, np.float32)}
    known = usable[:, None] & usable
    covariance = np.where(known, found.z_covariance[index, :count, :count].numpy(), np.nan)
    model = int(found.depth_model[index])
    sigma = np.sqrt(covariance.diagonal())
    placed = np.isfinite(sigma)
    return {
        "z_sigma_m": sigma.astype(np.float32),
        "expected_error": float(_MEAN_OF_NORMAL * sigma[placed].mean()) if placed.any() else None,
        "height_sigma_m": np.where(usable, found.height_sigma[index, :count].numpy(), np.nan).astype(np.float32),
        "z_covariance": covariance[np.tril_indices(count)].astype(np.float32),
        "depth_model": DEPTH_MODELS[model] if model >= 0 else None,
        "disparity_line": tuple(found.disparity_line[index].tolist()),
    }


def _image_status(usable: np.ndarray, is_optimized: bool, by_prior: bool) -> ImageStatus:
    if usable.sum() == 0:
        return ImageStatus.NO_PEOPLE
    if by_prior and not is_optimized:
        return ImageStatus.PLACED_BY_PRIOR
    if usable.sum() == 1:
        return ImageStatus.TOO_FEW_PEOPLE
    return ImageStatus.OPTIMIZED if is_optimized else ImageStatus.NOT_OPTIMIZED


def _person_problems(
    scene: Scene, statuses: list[PersonStatus], reasons: Mapping[int, str] = MappingProxyType({})
) -> tuple[list[PersonStatus], list[str | None]]:
    """Statuses and messages: a problem of the label, else what the optimiser says, and why (`reasons` by person)."""
    found: list[tuple[PersonStatus, str | None]] = []
    for person, (problem, status) in enumerate(zip(scene.person_problem, statuses, strict=True)):
        message = reasons.get(person) if status in _UNMEASURED else None
        if status is PersonStatus.INVALID_LABEL and problem is None:
            message = _name_beyond(scene, person)
        found.append(problem or (status, message))
    return [status for status, _ in found], [message for _, message in found]


def _name_beyond(scene: Scene, person: int) -> str:
    """Why the optimiser left out somebody whom the reader of labels let through."""
    if implausible_cameras(scene.intrinsics[None], np.array([scene.width]), np.array([scene.height]))[0]:
        return CAMERA_BEYOND
    return name_beyond(scene.pose[person], scene.betas[person], scene.transl[person])


def _explain_unmeasured(scene: Scene, index: int, results: _Results, config: PipelineConfig) -> dict[int, str]:
    """Person -> why the depth map says nothing about it, of those it says nothing about (`DepthEvidence.cut`)."""
    joint = config.solver.mode == "joint"
    grid = config.joint.min_pixels_grid if joint else config.evidence.min_pixels_grid
    least_vertices = config.joint.min_visible_vertices if joint else config.evidence.min_visible_vertices
    least = scene.height * scene.width / grid**2
    found = results.evidence
    cut = found.cut[index, : scene.num_people]
    reasons = {}
    for person in cut.gt(0).nonzero().flatten().tolist():
        pixels, inside, *_ = found.pixels[index, person].tolist()
        vertices = int(results.visible_vertices[index, person])
        low, high = found.bounds[index, person].tolist()
        if cut[person] == 1 and pixels < least:
            reasons[person] = f"{pixels} pixels are seen, fewer than {least:.0f}"
        elif cut[person] == 1:
            reasons[person] = f"{vertices} vertices are seen, fewer than {least_vertices}"
        elif inside >= least:
            reasons[person] = f"no pixel lies within {config.evidence.max_residual:g} m of the line through its depths"
        elif low == high:
            reasons[person] = (
                f"its depth is flat: the middle half of its {pixels} pixels is {low:.4g}, and none lies strictly inside"
            )
        else:
            reasons[person] = (
                f"{inside} of {pixels} pixels lie strictly inside the bounds of its depth, {low:.4g} to {high:.4g}, "
                f"fewer than {least:.0f}"
            )
    return reasons


def _column(mask: np.ndarray, extra_axes: int) -> np.ndarray:
    return mask.reshape(-1, *[1] * extra_axes)
