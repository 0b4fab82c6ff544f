"""Milliseconds per image of every stage, and how much a plain per-person loop would take for the same.

Everything runs in this process on one thread, the batched code and the plain loop in turn, so that the ratio holds on
a noisy machine. Medians over the repeats. The loop is the method as one would write it first: over people, over image
rows, over groups. It follows the same definitions as `maths`, so that both sides compute the same numbers (tests hold
them together). Bodies are posed in single precision by matrix products, as smplx does it; each is drawn alone by the
same rasteriser as the batched code, then put together. Metres, pixels.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dto_pipeline.axes import FAR, KID_AXIS, NEAR
from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import STAND_IN_BODY, PipelineConfig, RefineConfig
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.scenes import load_scenes
from dto_pipeline.lab.demo_data import BENCH_PEOPLE, BENCH_SIZE, build_bench_data
from dto_pipeline.maths.camera import map_intrinsics
from dto_pipeline.maths.refine import KID_SHIFT_JOINTS
from dto_pipeline.models.body import BodyModel, chain_joints, load_body, rotate
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.models.rasterizer import Raster, count_visible_vertices, face_bits, rasterize
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.placing import size_on
from dto_pipeline.scene import OptimizedScenes, Scene
from dto_pipeline.timing import StageClock

STAGES = ("read", "decode", "masks", "depth", "collate", "body", "rasterizer", "evidence", "solver", "split", "write")
COMPARED = ("body", "rasterizer", "evidence", "solver")  # what the plain loop does too
ENLARGED = 9  # times VGA on each side: 24.9 Mpx
GOAL_MS = 18.0  # all but depth, one core, 640 x 480, 5 people


@dataclass(frozen=True)
class BenchReport:
    """Medians over the repeats, in milliseconds per image."""

    images: int
    repeats: int
    device: str
    batched: dict[str, float]  # by stage
    plain: dict[str, float]  # by stage, COMPARED only
    evidence_ms_per_mpx: tuple[float, float]  # of one image as it is, and enlarged by `ENLARGED`; CPU time

    @property
    def ratio(self) -> float:
        """How many times longer the plain loop takes for the stages it does."""
        return sum(self.plain.values()) / sum(self.batched[stage] for stage in COMPARED)

    @property
    def but_depth(self) -> float:
        """All stages but depth [ms per image]."""
        return sum(value for stage, value in self.batched.items() if stage != "depth")

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "ratio": self.ratio, "all_but_depth_ms": self.but_depth, "goal_ms": GOAL_MS}

    def as_table(self) -> str:
        where = f"{self.images} images of {BENCH_SIZE[0]} x {BENCH_SIZE[1]}, {BENCH_PEOPLE} people each"
        lines = [f"{where}; {self.device}, one thread; median of {self.repeats} runs, ms per image", ""]
        lines.append(f"{'stage':<12} {'batched':>8} {'plain loop':>11}")
        for stage in STAGES:
            plain = f"{self.plain[stage]:>11.2f}" if stage in self.plain else ""
            note = "  (reading precomputed maps)" if stage == "depth" else ""
            lines.append(f"{stage:<12} {self.batched[stage]:>8.2f} {plain}{note}".rstrip())
        lines += ["", f"all but depth {self.but_depth:.1f} ms an image (goal {GOAL_MS:.0f})"]
        lines.append(f"{' + '.join(COMPARED)}: plain loop / batched = {self.ratio:.1f}")
        small, large = self.evidence_ms_per_mpx
        mpx = BENCH_SIZE[0] * BENCH_SIZE[1] / 1e6
        lines.append(f"evidence per Mpx: {small:.1f} ms at {mpx:.1f} Mpx, {large:.1f} at {mpx * ENLARGED**2:.1f}")
        return "\n".join(lines)


def run_bench(images: int = 16, repeats: int = 5, config: PipelineConfig | None = None) -> BenchReport:
    """Make scenes, then time every stage on them.

    Args:
        images: how many; the batch is that of `dto run` on this device.
        repeats: of the whole, the batched code and the plain loop in turn, after one that warms up.
    """
    config, threads = config or PipelineConfig(), torch.get_num_threads()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            manifest = build_bench_data(Path(folder), images, body)
            optimizer, plain_body, clocks = SceneOptimizer(body.to(device), config), PlainBody(body), []
            for repeat in range(repeats + 1):
                optimizer.clock, plain = StageClock(synchronize=True), StageClock()
                scenes, first = _run_batched(manifest, optimizer, Path(folder) / f"labels-{repeat}.parquet")
                if device == "cpu":
                    _run_plain(scenes, plain_body, config, plain)
                clocks.append((optimizer.clock.seconds, plain.seconds))
            evidence = _time_evidence(optimizer, first, 1), _time_evidence(optimizer, first, ENLARGED)
    finally:
        torch.set_num_threads(threads)
    batched, plain_loop = (
        {stage: 1000 / images * statistics.median(one[side][stage] for one in clocks[1:]) for stage in stages}
        for side, stages in enumerate((STAGES, COMPARED if device == "cpu" else ()))
    )
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return BenchReport(images, repeats, name, batched, plain_loop, evidence)


def _run_batched(manifest: Manifest, optimizer: SceneOptimizer, labels: Path) -> tuple[list[Scene], OptimizedScenes]:
    """The shard's scenes, and what became of the first batch."""
    config, clock = optimizer.config, optimizer.clock
    with clock("read"):
        rows = manifest.read_shard(0)
    depth = DepthFiles(Path(manifest.depth_root or ""))
    scenes = load_scenes(rows, Path(manifest.images_root), depth, config.evidence, clock=clock)
    placed, results = [], []
    at_once = size_on(config, "run.batch_images", optimizer.body.faces.is_cuda)
    for part in (scenes[start : start + at_once] for start in range(0, len(scenes), at_once)):
        with clock("collate"):
            batch = collate_scenes(part, optimizer.body.faces.device)
        results.append(optimizer(batch))
        with clock("split"):
            placed += split_batch(part, results[-1], config)
    with clock("write"):
        write_label_shard(build_label_table(placed), labels, {})
    return scenes, results[0]


def _run_plain(scenes: Sequence[Scene], plain: PlainBody, config: PipelineConfig, clock: StageClock) -> None:
    for scene in scenes:
        with clock("body"):
            vertices = [plain.vertices(*person) for person in zip(scene.pose, scene.betas, scene.transl, strict=True)]
        with clock("rasterizer"):
            drawn = draw_people(scene, vertices, plain.body, config)
        with clock("evidence"):
            people = measure_people(scene, drawn, plain.body, config)
        with clock("solver"):
            apply_fits(scene, people, solve_groups(people, config), plain.body)


def _time_evidence(optimizer: SceneOptimizer, result: OptimizedScenes, factor: int) -> float:
    """CPU milliseconds a Mpx of the evidence of a batch's first image, enlarged; the least of three."""
    first = torch.zeros(1, dtype=torch.int64, device=result.batch.disparity.device)
    batch, maps = result.batch.take(first), result.maps.take(first)
    disparity = batch.disparity.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    batch = batch.replace(disparity=disparity, image_size=batch.image_size * factor)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        optimizer.measure(maps, batch)
        seconds.append(time.process_time() - start)
    return 1e9 * min(seconds) / disparity.numel()


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
    tolerance, visible = config.evidence.visible_tolerance, []
    for mesh in vertices:
        visible.append(int(count_visible_vertices(mesh[None, None], intrinsics, size, map_size, raster, tolerance)))
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
            if ground[2] >= best[2] and ground[3] < best[3]:
                best = ground
        fits[group] = best[:2]
    return fits


def apply_fits(
    scene: Scene, people: list[PlainPerson | None], fits: dict[int, tuple[float, float]], body: BodyModel
) -> np.ndarray:
    """(N, 3) new translations [m]; shapes and the shift of children are computed one person at a time too.

    By all pixels and without the second look at far people: the cost is what matters here.
    """
    transl = scene.transl.astype(np.float64)
    for index, person in enumerate(people):
        if person is None or person.group not in fits:
            continue
        alpha, beta = fits[person.group]
        scale = (alpha * person.depth[0] + beta) / person.z[0]
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


def _solve(members: list[PlainPerson], kind: int, config: PipelineConfig) -> tuple[float, float, int, float]:
    """alpha, beta, number optimised and deviation of one group with one kind of evidence."""
    options = config.solver
    believed = [(p.slope, p.corr) for p in members if p.corr > options.min_corr]
    alpha_min = options.default_alpha_min
    if believed:
        alpha_min = sum(slope * corr for slope, corr in believed) / sum(corr for _, corr in believed)
    active = list(members)
    for _ in range(options.max_rounds):
        alpha, beta, forced = _fit_line(active, kind, alpha_min)
        if not forced and len(active) == 2:
            return alpha, beta, 0, 0.0
        heights = [p.height / p.z[kind] * (alpha * p.depth[kind] + beta) for p in active]
        optimized = len(active)
        if max(heights) <= options.max_height:
            break
        if len(active) <= 2:
            return 0.0, max(p.z[kind] for p in members), 0, 0.0
        active.pop(int(np.argmax(heights)))
    deviations = [abs(p.height / p.z[kind] * (alpha * p.depth[kind] + beta) - p.mean) / p.sigma for p in active]
    return alpha, beta, optimized, float(np.mean(deviations))


def _fit_line(active: list[PlainPerson], kind: int, alpha_min: float) -> tuple[float, float, bool]:
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
        return alpha_min, (e - b * alpha_min) / c, True
    return alpha, (a * e - b * d) / (a * c - b * b), False
