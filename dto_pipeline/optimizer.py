"""The whole method on one batch of scenes: labels, masks and depth in, refined people out; on a CPU or a GPU."""

from __future__ import annotations

import dataclasses

import torch

from dto_pipeline.config import PipelineConfig
from dto_pipeline.maths.camera import map_intrinsics
from dto_pipeline.maths.crowd_solver import fit_crowds
from dto_pipeline.maths.depth_evidence import measure_depth_evidence
from dto_pipeline.maths.heights import build_height_mixture, build_height_prior, classify_heights, summarise_mixture
from dto_pipeline.maths.paper_solver import fit_groups
from dto_pipeline.maths.refine import leave_out_implausible, refine_people, set_implausible_aside
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import count_visible_vertices, rasterize
from dto_pipeline.scene import (
    DepthEvidence,
    GroupFits,
    HeightPrior,
    OptimizedScenes,
    PersonMaps,
    SceneBatch,
)
from dto_pipeline.timing import StageClock


class SceneOptimizer:
    """Call it with batches (see `SceneBatch`) on the device of the body model."""

    def __init__(self, body: BodyModel, config: PipelineConfig, clock: StageClock | None = None) -> None:
        self.body = body
        self.config = config
        self.clock = clock or StageClock()

    @torch.no_grad()
    def __call__(self, batch: SceneBatch) -> OptimizedScenes:
        """Optimise B scenes; scenes with fewer than two people pass through with outcome NOT_RUN."""
        config = self.config
        least = 1 if self.joint and config.joint.move_single else 2  # one person cannot be compared
        batch, refused = leave_out_implausible(batch, self.body.rest_height)
        batch = batch.replace(present=batch.present & (batch.present.sum(1, keepdim=True) >= least))
        with self.clock("body"):
            vertices = self.body.vertices(batch.pose, batch.betas, batch.transl)
        with self.clock("rasterizer"):
            maps = self.render(vertices, batch)
        with self.clock("evidence"):
            evidence = self.measure(maps, batch)
        with self.clock("solver"):
            prior = self.expect_heights(batch)
            fits = self.fit(evidence, prior, batch)
        if self.joint:
            with self.clock("rerender"):
                maps, evidence, fits = self._measure_again(vertices, batch, maps, evidence, fits, prior)
        with self.clock("solver"):
            crowd_options = config.joint if self.joint else None
            body = self.body.rest_height, self.body.joints, self.body.has_kid_axis
            people = refine_people(batch, prior, fits, *body, config.refine, crowd_options)
            people = set_implausible_aside(people, batch, prior, refused, config.refine)
        return OptimizedScenes(batch=batch, maps=maps, evidence=evidence, prior=prior, people=people)

    @property
    def joint(self) -> bool:
        """True for the joint solver, False for the published one."""
        return self.config.solver.mode == "joint"

    def measure(self, maps: PersonMaps, batch: SceneBatch) -> DepthEvidence:
        """Depth evidence of a batch; the joint solver also takes small people, whose depth is noisier, and leaves
        out pixels of unknown depth."""
        options = self.config.evidence
        if self.joint:
            options = dataclasses.replace(
                options,
                min_pixels_grid=self.config.joint.min_pixels_grid,
                min_visible_vertices=self.config.joint.min_visible_vertices,
            )
        return measure_depth_evidence(maps, batch, options, self.config.depth.given_unit, zero_is_unknown=self.joint)

    def expect_heights(self, batch: SceneBatch) -> HeightPrior:
        """Height priors, for the joint solver with the mixture that they summarise."""
        config = self.config
        height = self.body.rest_height(batch.betas.to(torch.float64))
        height_class = classify_heights(batch.age_years, batch.male_prob, config.prior)
        prior = build_height_prior(height, height_class, config.prior)
        if not self.joint:
            return prior
        mixture = build_height_mixture(height, batch.age_years, batch.male_prob, config.prior, config.joint)
        return summarise_mixture(mixture, prior)

    def fit(self, evidence: DepthEvidence, prior: HeightPrior, batch: SceneBatch) -> GroupFits:
        """Fit with the joint solver or the published one."""
        config = self.config
        if self.joint:
            return fit_crowds(evidence, prior, batch, config.joint, config.solver.max_height)
        return fit_groups(evidence, prior, config.solver, config.refine)

    def _measure_again(
        self,
        vertices: torch.Tensor,
        batch: SceneBatch,
        maps: PersonMaps,
        evidence: DepthEvidence,
        fits: GroupFits,
        prior: HeightPrior,
    ) -> tuple[PersonMaps, DepthEvidence, GroupFits]:
        """Decide once more who is in front where masks overlap, by the distances just found, and measure and fit again
        the scenes in which more than a few pixels change owner.

        A body and its distance scaled by one factor look the same, so the label's mesh is drawn at its new distance.
        """
        covers = batch.masks.view(torch.uint8).sum(1, dtype=torch.uint8)  # bytes: a fifth of the time
        disputed = covers.ge(2).flatten(1).sum(1)
        rows = (disputed > self.config.joint.rerender_pixels).nonzero().squeeze(1)
        if len(rows) == 0:
            return maps, evidence, fits
        scale = torch.where(fits.new_z > 0, fits.new_z / fits.z, 1.0)[rows].to(vertices.dtype)
        some = batch.take(rows)
        drawn = self.render(vertices[rows] * scale[..., None, None], some)
        owner = drawn.person.clamp(min=0).flatten(1)
        label_z = drawn.z / scale.gather(1, owner).view_as(drawn.z)
        drawn = drawn.replace(z=label_z.where(drawn.person >= 0, torch.zeros_like(label_z)))
        changed = (drawn.person != maps.take(rows).person).flatten(1).sum(1) > self.config.joint.rerender_pixels
        kept = changed.nonzero().squeeze(1)
        if len(kept) == 0:
            return maps, evidence, fits
        rows, some, drawn = rows[kept], some.take(kept), drawn.take(kept)
        again = self.measure(drawn, some)
        refit = self.fit(again, prior.take(rows), some)
        return maps.put(rows, drawn), evidence.put(rows, again), fits.put(rows, refit)

    def render(self, vertices: torch.Tensor, batch: SceneBatch) -> PersonMaps:
        """Person maps of meshes (B, P, V, 3) [m], each person only inside its instance mask."""
        options = self.config.evidence
        camera = map_intrinsics(batch.intrinsics, batch.image_size, batch.map_size, options.render_max_side)
        raster = rasterize(
            vertices, self.body.faces, camera, batch.map_size, batch.present, batch.masks, self.body.closed
        )
        visible = count_visible_vertices(
            vertices, batch.intrinsics, batch.image_size, batch.map_size, raster, options.visible_tolerance
        )
        return PersonMaps(person=raster.person, z=raster.z, visible_vertices=visible)
