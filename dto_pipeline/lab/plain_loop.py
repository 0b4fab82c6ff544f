"""The method as one would write it first, over people, over image rows, over groups: what `dto bench` compares with.

It follows the same definitions as `maths`, so that both compute the same numbers (tests hold them together). Bodies are
posed in single precision by matrix products, as smplx does it; each is drawn alone by the same rasteriser as the
batched code, then put together. Metres, pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dto_pipeline.axes import FAR, KID_AXIS, NEAR
from dto_pipeline.config import PipelineConfig, RefineConfig
from dto_pipeline.maths.camera import map_intrinsics
from dto_pipeline.maths.refine import KID_SHIFT_JOINTS
from dto_pipeline.models.body import BodyModel, chain_joints, rotate
from dto_pipeline.models.rasterizer import Raster, count_visible_vertices, face_bits, rasterize
from dto_pipeline.scene import Scene
from dto_pipeline.timing import StageClock


@dataclass
class PlainPerson:
    """What one person's pixels and label say."""

    depth: tuple[float, float]  # all pixels, ground pixels
    z: tuple[float, float]
    depth_std: float
    slope: float
    corr: float
    group: int
    height: float
    mean: float
    sigma: float

    def height_on(self, line: tuple[float, float], kind: int) -> float:
        """What becomes of the height where alpha and beta put the person, by evidence 0 (all pixels) or 1 (ground)."""
        return self.height / self.z[kind] * (line[0] * self.depth[kind] + line[1])


class PlainBody:
    """Bodies one by one in single precision: blend shapes, then skinning."""

    def __init__(self, body: BodyModel) -> None:
        self.body = body
        self._template = body._template.T.to(torch.float32)
        self._blend = (body._blend * body._blend_scale[:, None]).view(len(body._blend), 3, -1).mT.flatten(1).float()
        self._weights = (body._weights * body._weights_scale[:, None]).T.to(torch.float32)

    def vertices(self, pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> torch.Tensor:
        """(V, 3) [m] of one person."""
        body, shape = self.body, torch.from_numpy(betas)[None]
        rotations = rotate(torch.from_numpy(pose).view(1, 24, 3))
        rest = body._joint_template + torch.einsum("jkl,bl->bjk", body._joint_shapedirs, shape)
        _, rigid = chain_joints(rotations, rest, body._tree)
        factors = torch.cat([shape, (rotations[:, 1:] - torch.eye(3)).flatten(1)], dim=1)
        shaped = self._template + (factors @ self._blend).view(-1, 3)
        pulls = (self._weights @ rigid.view(24, 12)).view(-1, 3, 4)
        return (pulls[..., :3] @ shaped[..., None]).squeeze(-1) + pulls[..., 3] + torch.from_numpy(transl)


def run_plain_loop(scenes: Sequence[Scene], plain: PlainBody, config: PipelineConfig, clock: StageClock) -> None:
    """Place the people of scenes one by one; what each stage takes goes to the clock."""
    for scene in scenes:
        with clock("body"):
            vertices = [plain.vertices(*person) for person in zip(scene.pose, scene.betas, scene.transl, strict=True)]
        with clock("rasterizer"):
            drawn = draw_people(scene, vertices, plain.body, config)
        with clock("evidence"):
            people = measure_people(scene, drawn, plain.body, config)
        with clock("solver"):
            _apply(scene, people, solve_groups(people, config), plain.body)


def draw_people(
    scene: Scene, vertices: list[torch.Tensor], body: BodyModel, config: PipelineConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who is seen at each pixel of the image (H, W), how far [m], and visible vertices (P,): one drawing a person."""
    assert scene.masks is not None
    shape = scene.masks.shape[1:]
    size, map_size = torch.tensor([[scene.height, scene.width]]), torch.tensor([shape])
    intrinsics = torch.from_numpy(scene.intrinsics)[None]
    camera = map_intrinsics(intrinsics, size, map_size, config.evidence.render_max_side)
    person, nearest, alone = np.full(shape, -1), np.full(shape, np.inf, np.float32), torch.ones(1, 1, dtype=torch.bool)
    for index, mesh in enumerate(vertices):
        z = rasterize(mesh[None, None], body.faces, camera, map_size, alone, closed=body.closed).z[0].numpy()
        seen = scene.masks[index] & (z > 0) & (z < nearest)
        person[seen], nearest[seen] = index, z[seen]
    nearest[person < 0] = 0
    drawn = torch.from_numpy(nearest)[None]
    raster = Raster(torch.from_numpy(person)[None], drawn, drawn.to(torch.int32), face_bits(len(body.faces)))
    tolerance = config.evidence.visible_tolerance
    visible = [
        int(count_visible_vertices(mesh[None, None], intrinsics, size, map_size, raster, tolerance))
        for mesh in vertices
    ]
    rows = np.arange(scene.height) * shape[0] // scene.height
    columns = np.arange(scene.width) * shape[1] // scene.width
    return person[rows][:, columns], nearest[rows][:, columns], np.array(visible)


def measure_people(
    scene: Scene, drawn: tuple[np.ndarray, np.ndarray, np.ndarray], body: BodyModel, config: PipelineConfig
) -> list[PlainPerson | None]:
    """Evidence and prior of every person, from what `draw_people` gives."""
    person_map, z_map, visible = drawn
    assert scene.disparity is not None
    disparity = scene.disparity.copy()
    disparity[disparity <= 0] = disparity[disparity > 0].min()
    depth_map, options, people = 1.0 / disparity, config.evidence, list[PlainPerson | None]()
    least = scene.height / options.min_pixels_grid * scene.width / options.min_pixels_grid
    for index in range(scene.num_people):
        mask = person_map == index
        people.append(None)
        if mask.sum() < least or visible[index] < options.min_visible_vertices:
            continue
        low, high = np.percentile(depth_map[mask], [25, 75])
        reach = options.iqr_factor * (high - low)
        mask &= (depth_map > max(low - reach, 0)) & (depth_map < high + reach)
        if mask.sum() < least:
            continue
        rows, _ = np.nonzero(mask)
        depth, z = depth_map[mask].astype(np.float64), z_map[mask].astype(np.float64)
        depth_centred, z_centred = depth.copy(), z.copy()
        for row in np.unique(rows):
            here = rows == row
            depth_centred[here] -= depth[here].mean()
            z_centred[here] -= z[here].mean()
        slope, offset = np.polyfit(depth_centred, z_centred, 1)
        corr = float(np.corrcoef(depth_centred, z_centred)[0, 1])
        keep = np.abs(z_centred - slope * depth_centred - offset) <= options.max_residual
        ground = keep & (rows >= np.percentile(rows[keep], options.ground_percentile))
        size = 2 * scene.intrinsics[1, 1] / (scene.transl[index, 2] * min(scene.height, scene.width))
        far = depth[keep].mean() > options.far_depth or size < options.far_scale
        height = float(body.rest_height(torch.from_numpy(scene.betas[index]).double()))
        mean, sigma = _prior(height, scene.age_years[index], scene.male_prob[index], config)
        people[-1] = PlainPerson(
            depth=(float(depth[keep].mean()), float(depth[ground].mean())),
            z=(float(z[keep].mean()), float(z[ground].mean())),
            depth_std=float(depth[keep].std()),
            slope=float(slope),
            corr=0.0 if np.isnan(corr) else corr,
            group=FAR if far else NEAR,
            height=height,
            mean=mean,
            sigma=sigma,
        )
    return people


def solve_groups(people: list[PlainPerson | None], config: PipelineConfig) -> dict[int, tuple[float, float]]:
    """alpha and beta of each group of two or more, before near and far are compared; near by the better evidence."""
    fits = {}
    for group in (NEAR, FAR):
        members = [person for person in people if person is not None and person.group == group]
        if len(members) < 2:
            continue
        best = _solve(members, 0, config)
        if group == NEAR:
            ground = _solve(members, 1, config)
            if ground[1] >= best[1] and ground[2] < best[2]:
                best = ground
        fits[group] = best[0]
    return fits


def _apply(
    scene: Scene, people: list[PlainPerson | None], fits: dict[int, tuple[float, float]], body: BodyModel
) -> np.ndarray:
    """(N, 3) new translations [m]; shapes and the shift of children are computed one person at a time too.

    By all pixels and without the second look at far people: the cost is what matters here.
    """
    transl = scene.transl.astype(np.float64)
    for index, person in enumerate(people):
        if person is None or person.group not in fits:
            continue
        scale = person.height_on(fits[person.group], 0) / person.height
        transl[index] *= scale
        betas = torch.from_numpy(scene.betas[index : index + 1]).double()
        column = KID_AXIS if scale * person.height < RefineConfig().kid_axis_below else 0
        below = betas.clone()
        below[0, column] -= 1
        betas[0, column] += person.height * (scale - 1) / (person.height - float(body.rest_height(below)))
        body.rest_height(betas)
        if column == KID_AXIS:
            pose = torch.from_numpy(scene.pose[index : index + 1])
            before = body.learnt_joints(pose, torch.from_numpy(scene.betas[index : index + 1]), torch.zeros(1, 3))
            after = body.learnt_joints(pose, betas.float(), torch.zeros(1, 3))
            transl[index, :2] += (scale * before - after)[0, list(KID_SHIFT_JOINTS), :2].mean(0).numpy()
    return transl


def _prior(height: float, age: float, male_prob: float, config: PipelineConfig) -> tuple[float, float]:
    prior = config.prior
    for index, limit in enumerate(prior.age_limits):
        if age < limit:
            return prior.mean[index], prior.sigma[index]
    index = 3 if male_prob < prior.female_below else 4 if male_prob >= prior.male_from else 5
    return (height + prior.mean[index]) / 2, prior.sigma[index]


def _solve(members: list[PlainPerson], kind: int, config: PipelineConfig) -> tuple[tuple[float, float], int, float]:
    """Line, number optimised and deviation of one group with one kind of evidence."""
    options = config.solver
    believed = [(p.slope, p.corr) for p in members if p.corr > options.min_corr]
    alpha_min = options.default_alpha_min
    if believed:
        alpha_min = sum(slope * corr for slope, corr in believed) / sum(corr for _, corr in believed)
    active = list(members)
    for _ in range(options.max_rounds):
        line, forced = _fit_line(active, kind, alpha_min)
        if not forced and len(active) == 2:
            return line, 0, 0.0
        heights = [p.height_on(line, kind) for p in active]
        optimized = len(active)
        if max(heights) <= options.max_height:
            break
        if len(active) <= 2:
            return (0.0, max(p.z[kind] for p in members)), 0, 0.0
        active.pop(int(np.argmax(heights)))
    return line, optimized, float(np.mean([abs(p.height_on(line, kind) - p.mean) / p.sigma for p in active]))


def _fit_line(active: list[PlainPerson], kind: int, alpha_min: float) -> tuple[tuple[float, float], bool]:
    """Alpha and beta by the normal equations; whether alpha is held at its least."""
    a = b = c = d = e = 0.0
    for p in active:
        weight, ratio = p.sigma**-2, p.height / p.z[kind]
        a += weight * ratio**2 * p.depth[kind] ** 2
        b += weight * ratio**2 * p.depth[kind]
        c += weight * ratio**2
        d += weight * ratio * p.depth[kind] * p.mean
        e += weight * ratio * p.mean
    alpha = (c * d - b * e) / (a * c - b * b)
    plane = np.std([p.depth[kind] for p in active]) < np.mean([p.depth_std for p in active])
    if alpha < alpha_min or plane:
        return (alpha_min, (e - b * alpha_min) / c), True
    return (alpha, (a * e - b * d) / (a * c - b * b)), False
