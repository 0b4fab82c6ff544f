"""The whole method on one batch of scenes: labels, masks and depth in, refined people out.

Joins the body model and the rasteriser to the mathematics; knows no files and no workers. Same code on CPU and GPU.
"""

from __future__ import annotations

import torch

from dto_pipeline.config import PipelineConfig
from dto_pipeline.maths.camera import map_intrinsics
from dto_pipeline.maths.depth_evidence import measure_depth_evidence, sample_pixels
from dto_pipeline.maths.group_fits import fit_groups
from dto_pipeline.maths.height_prior import build_height_prior, classify_heights
from dto_pipeline.maths.refine import refine_people
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import count_visible_vertices, rasterize
from dto_pipeline.scene import OptimizedScenes, PersonMaps, SceneBatch
from dto_pipeline.timing import StageClock


class SceneOptimizer:
    """Owns the body model; call it with batches (see `SceneBatch`), on the device the body lives on."""

    def __init__(self, body: BodyModel, config: PipelineConfig, clock: StageClock | None = None) -> None:
        self.body = body
        self.config = config
        self.clock = clock or StageClock()

    @torch.no_grad()
    def __call__(self, batch: SceneBatch) -> OptimizedScenes:
        """Optimise B scenes; scenes with fewer than two people pass through with outcome NOT_RUN."""
        config = self.config
        batch = _only_crowds(batch)
        with self.clock("body"):
            vertices = self.body.vertices(batch.pose, batch.betas, batch.transl)
        with self.clock("rasterizer"):
            maps = self.render(vertices, batch)
        with self.clock("evidence"):
            evidence = measure_depth_evidence(sample_pixels(maps, batch), maps, batch, config.evidence)
        with self.clock("solver"):
            height = self.body.rest_height(batch.betas.to(torch.float64))
            height_class = classify_heights(batch.age_years, batch.male_prob, config.prior)
            prior = build_height_prior(height, height_class, config.prior)
            fits = fit_groups(evidence, prior, config.solver, config.refine)
            people = refine_people(
                batch,
                prior,
                fits,
                self.body.rest_height,
                self.body.joints,
                self.body.has_kid_axis,
                config.refine,
            )
        return OptimizedScenes(batch=batch, maps=maps, evidence=evidence, prior=prior, people=people)

    def render(self, vertices: torch.Tensor, batch: SceneBatch) -> PersonMaps:
        """Person maps of meshes (B, P, V, 3) [m], each person only inside its instance mask."""
        knobs = self.config.evidence
        camera = map_intrinsics(batch.intrinsics, batch.image_size, batch.map_size, knobs.render_max_side)
        raster = rasterize(vertices, self.body.faces, camera, batch.map_size, batch.present, batch.masks)
        visible = count_visible_vertices(
            vertices, batch.intrinsics, batch.image_size, batch.map_size, raster, knobs.visible_tolerance
        )
        return PersonMaps(person=raster.person, z=raster.z, visible_vertices=visible)


def _only_crowds(batch: SceneBatch) -> SceneBatch:
    """Take out the people of scenes that hold fewer than two: there is nobody to compare them with."""
    crowd = batch.present.sum(1, keepdim=True) >= 2
    return batch.replace(present=batch.present & crowd)
