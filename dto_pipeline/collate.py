"""Between scenes (one image each, numpy, ragged) and batches (tensors, padded): the only place that pads and unpads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dto_pipeline.axes import BABY, TEEN
from dto_pipeline.bounds import CAMERA_BEYOND, implausible_cameras, name_beyond, read_acceptance
from dto_pipeline.config import PipelineConfig
from dto_pipeline.maths.camera import map_size
from dto_pipeline.maths.line_posterior import DEPTH_MODELS
from dto_pipeline.models.depth import is_metric
from dto_pipeline.scene import (
    OUTCOMES,
    PERSON_RESULTS,
    DepthEvidence,
    GroupFits,
    HeightPrior,
    OptimizedScenes,
    PlacedScene,
    RefinedPeople,
    Scene,
    SceneBatch,
    Tensors,
)
from dto_pipeline.status import ImageStatus, PersonStatus

_MEAN_OF_NORMAL = math.sqrt(2 / math.pi)  # of |x|, in standard deviations
_UNMEASURED = (PersonStatus.TOO_SMALL, PersonStatus.PLACED_BY_PRIOR)
_SMALL_AT_FIRST = 1  # code of `DepthEvidence.cut`
__all__ = ["collate_scenes", "keep_labels", "map_size", "split_batch"]


def collate_scenes(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> SceneBatch:
    """Pad scenes that can be optimised (no `problem`, with masks and disparity) into one batch on `device`."""
    people = max(scene.num_people for scene in scenes)
    height, width = (max(getattr(scene, side) for scene in scenes) for side in ("height", "width"))
    map_sizes = np.array([scene.masks.shape[1:] for scene in scenes])  # type: ignore[union-attr]
    map_height, map_width = map_sizes.max(0)
    usable = [scene.usable for scene in scenes]

    def pad(values: Sequence[Any], shape: tuple[int, ...], dtype: type) -> torch.Tensor:
        out: np.ndarray = np.zeros((len(scenes), *shape), dtype)
        for row, value in zip(out, values, strict=True):
            row[tuple(slice(0, side) for side in value.shape)] = value
        return _upload(out, device)

    def label(name: str, *shape: int) -> torch.Tensor:
        values = [
            np.where(ok.reshape(-1, *[1] * len(shape)), getattr(scene, name), 0)
            for scene, ok in zip(scenes, usable, strict=True)
        ]
        return pad(values, (people, *shape), np.float32)

    return SceneBatch(
        pose=label("pose", 72),
        betas=label("betas", 11),
        transl=label("transl", 3),
        intrinsics=pad([scene.intrinsics for scene in scenes], (3, 3), np.float64),
        age_years=label("age_years"),
        male_prob=label("male_prob"),
        present=pad(usable, (people,), np.bool_),
        masks=pad([scene.masks for scene in scenes], (people, map_height, map_width), np.bool_),
        disparity=(
            _pad_on_device(scenes, (height, width), device)
            if scenes[0].disparity is None
            else pad([scene.disparity for scene in scenes], (height, width), np.float32)
        ),
        metric=_upload(np.array([is_metric(scene.origin.get("depth")) for scene in scenes]), device),
        image_size=_upload(np.array([[scene.height, scene.width] for scene in scenes]), device),
        map_size=_upload(map_sizes, device),
    )


@dataclass(frozen=True)
class _Results(Tensors):
    """What label rows are made from."""

    evidence: DepthEvidence
    prior: HeightPrior
    people: RefinedPeople
    visible_vertices: torch.Tensor


def split_batch(scenes: Sequence[Scene], optimized: OptimizedScenes, config: PipelineConfig) -> list[PlacedScene]:
    """Undo `collate_scenes` on the results: one `PlacedScene` per scene, everything on the CPU."""
    seen = optimized.maps.visible_vertices
    # from a GPU: all copies are started before the first is waited for; maps and images stay there
    results = _Results(optimized.evidence, optimized.prior, optimized.people, seen).to("cpu", non_blocking=True)
    if seen.is_cuda:
        torch.cuda.current_stream(seen.device).synchronize()
    placed = [_place(scene, results.take(index), config) for index, scene in enumerate(scenes)]
    rule = read_acceptance(config.to_dict())
    for one in placed:
        accepted = rule.judge(
            np.array([one.is_optimized]),
            np.array([one.deviation], np.float32),
            np.array([np.nan if one.expected_error is None else one.expected_error], np.float32),
            np.zeros(one.scene.num_people, np.int64),
            one.transl[:, 2],
            one.z_sigma_m,
            one.height_m,
            (one.height_class >= BABY) & (one.height_class <= TEEN),
        )
        one.is_accepted = bool(accepted[0])
    return placed


def keep_labels(scene: Scene) -> PlacedScene:
    """A scene that was not optimised, with its labels as given and a status for the image and every person."""
    people = scene.num_people
    status, message = scene.problem or (ImageStatus.NO_PEOPLE if people == 0 else ImageStatus.TOO_FEW_PEOPLE, None)
    words = [problem or (PersonStatus.NOT_RUN, None) for problem in scene.person_problem]
    return PlacedScene(scene, status, message, [w for w, _ in words], [m for _, m in words], scene.betas, scene.transl)


def _upload(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """An array on a device; to a GPU from pinned memory, so that the copy runs while the next one is padded."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _pad_on_device(scenes: Sequence[Scene], shape: tuple[int, int], device: torch.device | str) -> torch.Tensor:
    """Disparity maps that a network left on the device, padded there without a copy to the host."""
    batch = torch.zeros(len(scenes), *shape, device=device)
    for row, scene in zip(batch, scenes, strict=True):
        assert scene.disparity_there is not None
        row[: scene.height, : scene.width] = scene.disparity_there
        if batch.is_cuda:  # made on the network's stream: not to be overwritten there before it is copied here
            scene.disparity_there.record_stream(torch.cuda.current_stream(batch.device))
    return batch


def _place(scene: Scene, results: _Results, config: PipelineConfig) -> PlacedScene:
    """A scene after the optimiser, from its `results` (P, ...), which are still padded."""
    people, fits, prior, evidence = results.people, results.people.fits, results.prior, results.evidence
    count, is_optimized = scene.num_people, bool(fits.is_optimized)
    outcomes = [OUTCOMES[code] for code in fits.outcome[:count].tolist()]
    usable = scene.usable & np.array([word is not PersonStatus.INVALID_LABEL for word in outcomes], bool)
    found: dict[str, torch.Tensor] = {
        "scale": people.scale,
        "beta_index": people.beta_index,
        "height_class": prior.height_class,
        "height_init_m": prior.height,
        "height_m": people.height,
        "prior_mean_m": prior.mean,
        "prior_sigma_m": prior.sigma,
        "depth_mean": evidence.depth[..., 0],
        "depth_std": evidence.depth_std,
        "slope": evidence.slope,
        "corr": evidence.corr,
        "mask_pixels": evidence.pixels[..., 0],
        "visible_vertices": results.visible_vertices,
        "depth_group": evidence.group,
    }
    if fits.posterior is not None:
        found["z_sigma_m"] = fits.posterior.z_covariance.diagonal().sqrt()
        found["height_sigma_m"] = fits.posterior.height_sigma
    columns: dict[str, Any] = {}
    for name, values in found.items():
        dtype, missing = PERSON_RESULTS[name]
        columns[name] = np.where(usable, values[:count].numpy(), missing).astype(dtype)
    betas, transl = (
        np.where(usable[:, None], new[:count].numpy(), old).astype(np.float32)
        for new, old in ((people.betas, scene.betas), (people.transl, scene.transl))
    )
    words = [
        problem or (outcome, _explain(scene, person, outcome, results, config))
        for person, (problem, outcome) in enumerate(zip(scene.person_problem, outcomes, strict=True))
    ]
    placed = PlacedScene(
        scene,
        _image_status(usable, is_optimized, PersonStatus.PLACED_BY_PRIOR in outcomes),
        None,
        [word for word, _ in words],
        [message for _, message in words],
        betas,
        transl,
        **columns,
        is_optimized=is_optimized,
        deviation=float(fits.deviation),
        alpha=tuple(fits.alpha.tolist()),
        beta=tuple(fits.beta.tolist()),
        used_ground=bool(fits.used_ground),
        **_certainty(fits, usable),
    )
    if scene.same_as is not None:
        _move_repeats(placed, scene.same_as)
    return placed


def _move_repeats(placed: PlacedScene, same_as: np.ndarray) -> None:
    """Move each person that repeats another (`Scene.same_as`) together with that person.

    Its distance is multiplied by the same factor, and the same shape coefficient changes by the same step. Its other
    results stay unknown.
    """
    copies = np.flatnonzero(same_as >= 0)
    own, scene = same_as[copies], placed.scene
    scale = placed.scale[own].astype(np.float64)[:, None]
    shift = placed.transl[own] - scale * scene.transl[own]  # what keeps the joints in the picture
    placed.transl[copies] = scale * scene.transl[copies] + shift
    placed.betas[copies] = scene.betas[copies] + (placed.betas[own] - scene.betas[own])
    placed.scale[copies], placed.beta_index[copies] = placed.scale[own], placed.beta_index[own]


def _certainty(fits: GroupFits, usable: np.ndarray) -> dict[str, Any]:
    """Fields of an image that only the joint solver fills."""
    found, count = fits.posterior, len(usable)
    if found is None:
        return {}
    covariance = np.where(usable[:, None] & usable, found.z_covariance[:count, :count].numpy(), np.nan)
    sigma, model = np.sqrt(covariance.diagonal()), int(found.depth_model)
    placed = np.isfinite(sigma)
    return {
        "expected_error": float(_MEAN_OF_NORMAL * sigma[placed].mean()) if placed.any() else None,
        "z_covariance": covariance[np.tril_indices(count)].astype(np.float32),
        "depth_model": DEPTH_MODELS[model] if model >= 0 else None,
        "disparity_line": tuple(found.disparity_line.tolist()),
    }


def _image_status(usable: np.ndarray, is_optimized: bool, by_prior: bool) -> ImageStatus:
    if usable.sum() == 0:
        return ImageStatus.NO_PEOPLE
    if by_prior and not is_optimized:
        return ImageStatus.PLACED_BY_PRIOR
    if usable.sum() == 1:
        return ImageStatus.TOO_FEW_PEOPLE
    return ImageStatus.OPTIMIZED if is_optimized else ImageStatus.NOT_OPTIMIZED


def _explain(scene: Scene, person: int, outcome: PersonStatus, results: _Results, config: PipelineConfig) -> str | None:
    """Why the optimiser could not use a person that the reader of labels accepted, or could not measure its depth."""
    cut = int(results.evidence.cut[person])
    if outcome is PersonStatus.INVALID_LABEL:
        if implausible_cameras(scene.intrinsics, scene.width, scene.height):
            return CAMERA_BEYOND
        return name_beyond(scene.pose[person], scene.betas[person], scene.transl[person])
    if outcome not in _UNMEASURED or cut <= 0:
        return None
    options = config.joint if config.solver.mode == "joint" else config.evidence
    least = scene.height * scene.width / options.min_pixels_grid**2
    pixels, inside, *_ = results.evidence.pixels[person].tolist()
    low, high = results.evidence.bounds[person].tolist()
    if cut == _SMALL_AT_FIRST:
        if pixels < least:
            return f"{pixels} pixels of known depth are seen, fewer than {least:.0f}"
        vertices = int(results.visible_vertices[person])
        return f"{vertices} vertices are seen, fewer than {options.min_visible_vertices}"
    if inside >= least:
        return f"no pixel lies within {config.evidence.max_residual:g} m of the line through its depths"
    if low == high:
        return f"its depth is flat: the middle half of its {pixels} pixels is {low:.4g}, and none lies strictly inside"
    found = f"{inside} of {pixels} pixels lie strictly inside the bounds of its depth, {low:.4g} to {high:.4g}"
    return f"{found}, fewer than {least:.0f}"
