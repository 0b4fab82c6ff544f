"""Perception: disparity, instance masks, ages and genders of loaded scenes by networks, as the config asks.

`Scene.origin` records where each scene's masks and attributes came from; an image without a usable depth map gets a
`Scene.problem`. A pixel that two people without masks claim counts for neither, because the method is to find out which
of them stands in front. Knows no files and no batches of the optimiser. Masks have the size of the person map (see
`maths.camera.map_size`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from dto_pipeline.config import PipelineConfig
from dto_pipeline.maths.camera import map_intrinsics, project
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.network_input import CROP_SIDE, Instances, images_at_once, run_in_batches
from dto_pipeline.models.rasterizer import rasterize
from dto_pipeline.scene import Scene
from dto_pipeline.timing import StageClock

if TYPE_CHECKING:
    from dto_pipeline.models.depth_anything import DepthNetwork
    from dto_pipeline.models.people_networks import AttributeModel, InstanceNetwork

_NEAREST = 0.05  # a label nearer than this, or behind the camera, has no outline [m]
_BODY_JOINTS = 24  # of smplx's 45: those of the tree
_FACE = slice(24, 29)  # nose, eyes and ears of smplx's 45 joints
_NECK = 12
_FACE_REACH = 1.1  # half side of a face crop, in distances from neck to the middle of the face
_BODY_REACH = 1.15  # a body crop is this many times as large as the box of the joints


class Perception:
    """The networks of one worker; light where the config asks for none."""

    def __init__(self, config: PipelineConfig, body: BodyModel, device: torch.device | str = "cpu") -> None:
        """Load the networks.

        Raises: ModelMissing, ModelError: one cannot be loaded.
        """
        self.config = config
        self._body = body
        self._device = torch.device(device)
        self.depth: DepthNetwork | None = None
        self._instances: InstanceNetwork | None = None
        self._attributes: list[AttributeModel] = []
        # imported where needed: transformers costs seconds that a run on files need not spend
        if config.depth.source == "model":
            from dto_pipeline.models.depth_anything import DepthNetwork

            self.depth = DepthNetwork(config.depth, device)
        if config.masks.source == "model":
            from dto_pipeline.models.people_networks import InstanceNetwork

            self._instances = InstanceNetwork(config.masks, device)
        if config.attributes.source == "model":
            from dto_pipeline.models.people_networks import build_attribute_models

            self._attributes = build_attribute_models(config.attributes, device)

    @property
    def facts(self) -> dict[str, str]:
        """Entries of the labels' metadata; equal on every machine."""
        facts = {} if self.depth is None else dict(self.depth.facts)
        if self._instances is not None:
            facts |= self._instances.identity.facts("mask")
        return facts | ({"attribute_models": self._attribute_names} if self._attributes else {})

    @property
    def _attribute_names(self) -> str:
        return ", ".join(model.identity.short for model in self._attributes)

    def perceive(self, scenes: Sequence[Scene], clock: StageClock) -> None:
        """Fill in disparity, masks and attributes of scenes whose images are loaded; others stay as they are."""
        able = [scene for scene in scenes if scene.problem is None and scene.num_people > 0]
        if not able:
            return
        if self.depth is not None:
            with clock("depth"):
                focal = [float(scene.intrinsics[0, 0]) for scene in able]
                for scene, found in zip(able, self.depth.see(_images(able), focal), strict=True):
                    scene.origin["depth"] = self.depth.origin
                    if not torch.is_tensor(found):
                        scene.problem = (found.status, str(found))
                    elif found.is_cuda:
                        scene.disparity_there = found
                    else:
                        scene.disparity = found.numpy()
        able = [scene for scene in able if scene.problem is None]
        with clock("masks"):
            self._see_masks(able)
        with clock("attributes"):
            self._see_attributes(able)

    def _see_masks(self, scenes: Sequence[Scene]) -> None:
        max_side = self.config.evidence.render_max_side
        if self.config.masks.source == "none":
            for scene in scenes:
                scene.has_mask = np.zeros(scene.num_people, bool)
                scene.origin["masks"] = "none"
        if self._instances is not None and scenes:
            sizes = [_masks(scene).shape[1:] for scene in scenes]
            for scene, found in zip(scenes, self._instances.find(_images(scenes), sizes), strict=True):
                height, width = found.masks.shape[1:]
                joints = project_joints(scene, self._body)[:, :_BODY_JOINTS]
                joints = joints * (width / scene.width, height / scene.height)
                outlines = render_silhouettes(scene, self._body, max_side)
                index = match_instances(found, outlines, joints, self.config.masks.min_match)
                scene.has_mask = index >= 0
                scene.masks = np.zeros_like(_masks(scene))
                scene.masks[scene.has_mask] = found.masks[index[scene.has_mask]]
                scene.mask_score = np.full(scene.num_people, np.nan, np.float32)
                scene.mask_score[scene.has_mask] = found.score[index[scene.has_mask]]
                scene.origin["masks"] = self._instances.identity.short if scene.has_mask.any() else "none"
        for scene in scenes:
            if scene.has_mask is None or scene.has_mask[usable_people(scene)].all():
                continue
            seen = scene.has_mask[:, None, None]  # others get their outline, without the pixels that anybody claims
            claims = np.where(seen, _masks(scene), render_silhouettes(scene, self._body, max_side))
            scene.masks = claims & (seen | (claims.sum(0) == 1))
            origin = scene.origin.get("masks", "none")
            scene.origin["masks"] = f"{origin} + rendered" if scene.has_mask.any() else "rendered"

    def _see_attributes(self, scenes: Sequence[Scene]) -> None:
        if self.config.attributes.source == "none":
            for scene in scenes:
                scene.age_years = np.full_like(scene.age_years, np.nan)
                scene.male_prob = np.full_like(scene.male_prob, np.nan)
                scene.origin["attributes"] = "unknown"
        if not self._attributes:
            return
        people = []  # of each scene: usable labels whose age or gender is unknown
        for scene in scenes:
            usable = usable_people(scene)
            people.append(usable[np.isnan(scene.age_years[usable]) | np.isnan(scene.male_prob[usable])])
        if not any(len(own) for own in people):
            return
        crops = [crop_people(scene, own, self._body) for scene, own in zip(scenes, people, strict=True)]
        faces, bodies = (torch.cat(part) for part in zip(*crops, strict=True))
        estimates = iter(self._estimate(faces, bodies))
        for scene, own in zip(scenes, people, strict=True):
            if len(own) == 0:
                continue
            known = np.isfinite(scene.age_years).any() or np.isfinite(scene.male_prob).any()
            found = np.stack([next(estimates) for _ in own])
            for name, values in zip(("age_years", "male_prob"), found.T, strict=True):
                given = getattr(scene, name)
                given[own] = np.where(np.isnan(given[own]), values, given[own])
            names = self._attribute_names
            scene.origin["attributes"] = f"{scene.origin.get('attributes', 'labels')} + {names}" if known else names

    def _estimate(self, faces: torch.Tensor, bodies: torch.Tensor) -> list[np.ndarray]:
        """Age [years] and probability of being male, (2,) float32 of each person, from the first network that gives
        them."""

        def estimate(people: list[int]) -> np.ndarray:
            joined, *others = (model.estimate(faces[people], bodies[people]) for model in self._attributes)
            for other in others:
                joined = np.where(np.isnan(joined), other, joined)
            return joined

        batch = images_at_once(self._device, self.config.attributes.batch)
        return run_in_batches(self._device, [""] * len(faces), batch, estimate)


@torch.no_grad()
def render_silhouettes(scene: Scene, body: BodyModel, max_side: int) -> np.ndarray:
    """(P, h, w) bool: pixels that each labelled body covers on its own, none for labels that cannot be used.

    h and w are those of the scene's masks; `max_side`: the longest side of person maps [px].
    """
    silhouettes, people = np.zeros(_masks(scene).shape, bool), usable_people(scene)
    if len(people) == 0:
        return silhouettes
    device = body.faces.device
    vertices = body.vertices(*_labels(scene, people, device))
    image_size, size = torch.tensor([[scene.height, scene.width]]), torch.tensor([silhouettes.shape[1:]])
    camera = map_intrinsics(torch.from_numpy(scene.intrinsics)[None], image_size, size, max_side).to(device)
    present = torch.ones(len(people), 1, dtype=torch.bool, device=device)
    sizes = size.to(device).expand(len(people), 2)
    raster = rasterize(vertices[:, None], body.faces, camera.expand(len(people), 3, 3), sizes, present)
    silhouettes[people] = (raster.person >= 0).cpu().numpy()
    return silhouettes


@torch.no_grad()
def project_joints(scene: Scene, body: BodyModel) -> np.ndarray:
    """(P, 45, 2) float64 positions of smplx's joints in the image [px]; NaN for labels that cannot be used."""
    joints = np.full((scene.num_people, 45, 2), np.nan)
    people = usable_people(scene)
    if len(people):
        points = body.joints(*_labels(scene, people, body.faces.device)).double().cpu()
        joints[people] = project(points, torch.from_numpy(scene.intrinsics)).numpy()
    return joints


def usable_people(scene: Scene) -> np.ndarray:
    """(n,) indices of people whose labels can be drawn."""
    return np.flatnonzero(scene.usable & np.isfinite(scene.transl).all(1) & (scene.transl[:, 2] > _NEAREST))


def match_instances(instances: Instances, outlines: np.ndarray, joints: np.ndarray, min_match: float) -> np.ndarray:
    """Assign instances to people, with the best total match: (P,) int64 index of each person's instance, -1 = none.

    A match is the mean of the IoU with the person's outline and of the share of its joints inside.

    Args:
        outlines: (P, h, w) bool of the labelled bodies, each on its own.
        joints: (P, J, 2) of the same [px of the map]; NaN or outside the map = not counted.
        min_match: pairs that match less are not assigned.
    """
    index = np.full(len(outlines), -1)
    if len(outlines) == 0 or len(instances.masks) == 0:
        return index
    flat, other = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (outlines, instances.masks))
    shared = flat @ other.T
    iou = shared / np.maximum(flat.sum(1)[:, None] + other.sum(1) - shared, 1)
    height, width = instances.masks.shape[1:]
    column, row = np.floor(np.nan_to_num(joints, nan=-1.0).clip(-1, 1 << 20)).astype(np.int64).transpose(2, 0, 1)
    counted = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hit = instances.masks[:, np.where(counted, row, 0), np.where(counted, column, 0)] & counted  # (Q, P, J)
    inside = (hit.sum(2) / np.maximum(counted.sum(1), 1)).T  # (P, Q) share of joints in each mask; 0 where none counts
    match = (iou + inside) / 2
    people, found = linear_sum_assignment(match, maximize=True)
    kept = match[people, found] >= min_match
    index[people[kept]] = found[kept]
    return index


def crop_people(scene: Scene, people: np.ndarray, body: BodyModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops (n, 3, s, s) of the faces and bodies of some people: around the labelled body, or a known box of the
    body."""
    (image,) = _images([scene])
    joints = project_joints(scene, body)[people]
    face = joints[:, _FACE].mean(1)
    reach = _FACE_REACH * np.linalg.norm(face - joints[:, _NECK], axis=1, keepdims=True)
    faces = np.concatenate([face - reach, face + reach], axis=1)
    low, high = joints.min(1), joints.max(1)
    centre, half = (low + high) / 2, (high - low) / 2 * _BODY_REACH
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    known = scene.bbox_xyxy[people]
    boxes = np.where(np.isfinite(known).all(1, keepdims=True), known, boxes)
    return cut_crops(image, faces), cut_crops(image, boxes)


def cut_crops(image: np.ndarray, boxes: np.ndarray, side: int = CROP_SIDE) -> torch.Tensor:
    """(n, 3, side, side) float32 crops of one image in 0 .. 1, black outside.

    Args: image (H, W, 3) uint8 RGB; boxes (n, 4) left, top, right, bottom [px], widened to squares.
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.float32) / 255
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    x = (centre[:, :1] + half * steps) / width * 2 - 1
    y = (centre[:, 1:] + half * steps) / height * 2 - 1
    grid = torch.from_numpy(np.stack(np.broadcast_arrays(x[:, None], y[:, :, None]), -1)).to(torch.float32)
    return functional.grid_sample(pixels.expand(len(boxes), -1, -1, -1), grid, align_corners=False)


def _labels(scene: Scene, people: np.ndarray, device: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(values[people]).to(device) for values in (scene.pose, scene.betas, scene.transl)]


def _masks(scene: Scene) -> np.ndarray:
    assert scene.masks is not None
    return scene.masks


def _images(scenes: Iterable[Scene]) -> list[np.ndarray]:
    images = [scene.image for scene in scenes]
    assert all(image is not None for image in images)
    return images  # type: ignore[return-value]
