"""Perception: disparity, instance masks, ages and genders of loaded scenes by networks, as the config asks.

`Scene.origin` records where each scene's masks and attributes came from; an image without a usable depth map gets a
`Scene.problem`. Depends on no files and no batches of the optimiser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from dto_pipeline.config import PipelineConfig
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.body_pixels import (
    Attributes,
    Instances,
    claim_pixels,
    crop_people,
    join_attributes,
    map_joints,
    match_instances,
    project_joints,
    render_silhouettes,
    usable_people,
)
from dto_pipeline.models.network_input import images_at_once, run_in_batches
from dto_pipeline.scene import Scene
from dto_pipeline.timing import StageClock

if TYPE_CHECKING:
    from dto_pipeline.models.depth_anything import DepthNetwork
    from dto_pipeline.models.people_networks import AttributeModel, InstanceNetwork


class Perception:
    """The networks of one worker; light where the config asks for none."""

    def __init__(self, config: PipelineConfig, body: BodyModel, device: torch.device | str = "cpu") -> None:
        """Load the networks.

        Raises:
            ModelMissing, ModelError: one cannot be loaded.
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
        if self._attributes:
            facts["attribute_models"] = ", ".join(model.identity.short for model in self._attributes)
        return facts

    def perceive(self, scenes: Sequence[Scene], clock: StageClock) -> None:
        """Fill in disparity, masks and attributes of scenes whose images are loaded; others stay as they are."""
        able = [scene for scene in scenes if scene.problem is None and scene.num_people > 0]
        if not able:
            return
        if self.depth is not None:
            with clock("depth"):
                self._see_depth(able)
        with clock("masks"):
            self._see_masks([scene for scene in able if scene.problem is None])
        with clock("attributes"):
            self._see_attributes([scene for scene in able if scene.problem is None])

    def _see_depth(self, scenes: Sequence[Scene]) -> None:
        assert self.depth is not None
        focal = [float(scene.intrinsics[0, 0]) for scene in scenes]
        for scene, found in zip(scenes, self.depth.see(_images(scenes), focal), strict=True):
            scene.origin["depth"] = self.depth.origin
            if not torch.is_tensor(found):
                scene.problem = (found.status, str(found))
            elif found.is_cuda:
                scene.disparity_there = found
            else:
                scene.disparity = found.numpy()

    def _see_masks(self, scenes: Sequence[Scene]) -> None:
        if self.config.masks.source == "none":
            for scene in scenes:
                scene.has_mask = np.zeros(scene.num_people, bool)
                scene.origin["masks"] = "none"
        if self._instances is not None and scenes:
            sizes = [scene.masks.shape[1:] for scene in scenes if scene.masks is not None]
            for scene, found in zip(scenes, self._instances.find(_images(scenes), sizes), strict=True):
                self._assign(scene, found)
        for scene in scenes:
            if scene.has_mask is not None and not scene.has_mask[usable_people(scene)].all():
                self._draw_missing(scene)

    def _assign(self, scene: Scene, found: Instances) -> None:
        """Give the instances found in an image to the people they fit."""
        assert scene.masks is not None
        assert self._instances is not None
        silhouettes = render_silhouettes(scene, self._body, self.config.evidence.render_max_side)
        joints = map_joints(project_joints(scene, self._body), (scene.height, scene.width), found.masks.shape[1:])
        index, _ = match_instances(found, silhouettes, joints, self.config.masks.min_match)
        scene.has_mask = index >= 0
        scene.masks = np.zeros_like(scene.masks)
        scene.masks[scene.has_mask] = found.masks[index[scene.has_mask]]
        scene.mask_score = np.full(scene.num_people, np.nan, np.float32)
        scene.mask_score[scene.has_mask] = found.score[index[scene.has_mask]]
        scene.origin["masks"] = self._instances.identity.short if scene.has_mask.any() else "none"

    def _draw_missing(self, scene: Scene) -> None:
        """Give people without a mask their outline, without the pixels that others claim."""
        assert scene.masks is not None
        assert scene.has_mask is not None
        silhouettes = render_silhouettes(scene, self._body, self.config.evidence.render_max_side)
        scene.masks = claim_pixels(scene.masks, scene.has_mask, silhouettes)
        seen = scene.origin.get("masks", "none")
        scene.origin["masks"] = f"{seen} + rendered" if scene.has_mask.any() else "rendered"

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
        crops = [crop_people(scene, own, self._body) for scene, own in zip(scenes, people, strict=True)]
        if not any(len(own) for own in people):
            return
        faces, bodies = (torch.cat(part) for part in zip(*crops, strict=True))
        found = self._estimate(faces, bodies)
        start = 0
        for scene, own in zip(scenes, people, strict=True):
            part = slice(start, start + len(own))
            start = part.stop
            if len(own):
                self._fill(scene, own, Attributes(found.age_years[part], found.male_prob[part]))

    def _estimate(self, faces: torch.Tensor, bodies: torch.Tensor) -> Attributes:
        def estimate(people: list[int]) -> Iterable[tuple[float, float]]:
            found = join_attributes([model.estimate(faces[people], bodies[people]) for model in self._attributes])
            return zip(found.age_years, found.male_prob, strict=True)

        batch = images_at_once(self._device, self.config.attributes.batch)
        found = run_in_batches(self._device, [""] * len(faces), batch, estimate)
        return Attributes(*(np.array(values) for values in zip(*found, strict=True)))

    def _fill(self, scene: Scene, people: np.ndarray, found: Attributes) -> None:
        """Fill in what the labels do not have."""
        known = np.isfinite(scene.age_years).any() or np.isfinite(scene.male_prob).any()
        for name in ("age_years", "male_prob"):
            values = getattr(scene, name)
            values[people] = np.where(np.isnan(values[people]), getattr(found, name), values[people])
        models = ", ".join(model.identity.short for model in self._attributes)
        scene.origin["attributes"] = f"{scene.origin.get('attributes', 'labels')} + {models}" if known else models


def _images(scenes: Iterable[Scene]) -> list[np.ndarray]:
    images = [scene.image for scene in scenes]
    assert all(image is not None for image in images)
    return images  # type: ignore[return-value]
