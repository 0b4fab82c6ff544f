"""`dto bench`: milliseconds per image of every stage, compared with a plain loop over people.

Both ways run in this process, in turn, so that their ratio holds on a busy machine; figures are medians over the
repeats. The plain loop follows the definitions of `maths` and `models.body` one person and one image row at a time:
bodies in single precision by matrix products, each drawn alone by the same rasteriser, then its evidence.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.images import ImageFolder
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.scenes import SceneLoader
from dto_pipeline.lab.demo_data import BENCH_PEOPLE, BENCH_SIZE, build_bench_data
from dto_pipeline.maths.camera import map_intrinsics
from dto_pipeline.models.body import BodyModel, chain_joints, load_body, rotate
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.models.rasterizer import Raster, count_visible_vertices, face_bits, rasterize
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.placing import size_on
from dto_pipeline.scene import OptimizedScenes, Scene
from dto_pipeline.timing import StageClock

STAGES = ("read", "decode", "masks", "depth", "collate", "body", "rasterizer", "evidence", "solver", "split", "write")
COMPARED = ("body", "rasterizer", "evidence")  # stages of the plain loop
ENLARGED = 9  # times VGA on each side: 24.9 Mpx
GOAL_MS = 18.0  # all but depth, one core, 640 x 480, 5 people
IMAGES = f"images of {BENCH_SIZE[0]} x {BENCH_SIZE[1]}, {BENCH_PEOPLE} people each"


@dataclass(frozen=True)
class BenchReport:
    """The figures of a bench, and the same as text."""

    figures: Mapping[str, Any]
    table: str

    def to_json(self) -> dict[str, Any]:
        return dict(self.figures)

    def as_table(self) -> str:
        return self.table


def run_bench(images: int, repeats: int, config: PipelineConfig) -> BenchReport:
    """Make scenes, then time every stage on them, on one thread, in the batches of `dto run` on this device."""
    threads, device = torch.get_num_threads(), "cuda" if torch.cuda.is_available() else "cpu"
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            manifest = build_bench_data(Path(folder), images, body)
            optimizer, plain_body, clocks = SceneOptimizer(body.to(device), config), PlainBody(body), []
            for repeat in range(repeats + 1):  # the first one warms up
                optimizer.clock, plain = StageClock(synchronize=True), StageClock()
                scenes, first = _run_batched(manifest, optimizer, Path(folder) / f"labels-{repeat}.parquet")
                if device == "cpu":
                    run_plain_loop(scenes, plain_body, config, plain)
                clocks.append((optimizer.clock.seconds, plain.seconds))
            evidence = _time_evidence(optimizer, first, 1), _time_evidence(optimizer, first, ENLARGED)
    finally:
        torch.set_num_threads(threads)
    batched, plain_loop = (
        {stage: 1000 / images * statistics.median(one[side][stage] for one in clocks[1:]) for stage in stages}
        for side, stages in enumerate((STAGES, COMPARED if device == "cpu" else ()))
    )
    figures = {
        "images": images,
        "repeats": repeats,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "batched": batched,  # ms an image, by stage
        "plain": plain_loop,
        "evidence_ms_per_mpx": evidence,  # CPU time, of one image as it is and enlarged by `ENLARGED`
        "ratio": sum(plain_loop.values()) / sum(batched[stage] for stage in COMPARED),
        "all_but_depth_ms": sum(batched.values()) - batched["depth"],
        "goal_ms": GOAL_MS,
    }
    return BenchReport(figures, _as_table(figures))


def _as_table(figures: Mapping[str, Any]) -> str:
    head = f"{figures['images']} {IMAGES}; {figures['device']}, one thread; median of {figures['repeats']} runs"
    lines = [f"{head}, ms per image", "", f"{'stage':<12} {'batched':>8} {'plain loop':>11}"]
    for stage, ms in figures["batched"].items():
        plain = f"{figures['plain'][stage]:>11.2f}" if stage in figures["plain"] else ""
        note = "  (reading precomputed maps)" if stage == "depth" else ""
        lines.append(f"{stage:<12} {ms:>8.2f} {plain}{note}".rstrip())
    lines += ["", f"all but depth {figures['all_but_depth_ms']:.1f} ms an image (goal {GOAL_MS:.0f})"]
    lines.append(f"{' + '.join(COMPARED)}: plain loop / batched = {figures['ratio']:.1f}")
    (small, large), mpx = figures["evidence_ms_per_mpx"], BENCH_SIZE[0] * BENCH_SIZE[1] / 1e6
    lines.append(f"evidence per Mpx: {small:.1f} ms at {mpx:.1f} Mpx, {large:.1f} at {mpx * ENLARGED**2:.1f}")
    return "\n".join(lines)


def _run_batched(manifest: Manifest, optimizer: SceneOptimizer, labels: Path) -> tuple[list[Scene], OptimizedScenes]:
    """The shard's scenes, and the result of the first batch."""
    config, clock = optimizer.config, optimizer.clock
    with clock("read"):
        rows = manifest.read_shard(0)
    depth = DepthFiles(Path(manifest.depth_root or ""))
    loader = SceneLoader(ImageFolder(manifest.images_root), depth, config.evidence.render_max_side)
    scenes = loader.load(rows, clock=clock)
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


def _time_evidence(optimizer: SceneOptimizer, result: OptimizedScenes, factor: int) -> float:
    """CPU milliseconds per Mpx of the evidence of a batch's first image, enlarged; the least of three."""
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


@dataclass(frozen=True)
class PlainEvidence:
    """Evidence of one person; pairs are of all pixels and of ground pixels."""

    depth: tuple[float, float]
    z: tuple[float, float]
    depth_std: float
    slope: float
    corr: float


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
    """Bodies, pictures and evidence of people one by one; the clock gets the time of each stage."""
    for scene in scenes:
        with clock("body"):
            vertices = [plain.vertices(*person) for person in zip(scene.pose, scene.betas, scene.transl, strict=True)]
        with clock("rasterizer"):
            drawn = draw_people(scene, vertices, plain.body, config)
        with clock("evidence"):
            measure_people(scene, drawn, config)


def draw_people(
    scene: Scene, vertices: list[torch.Tensor], body: BodyModel, config: PipelineConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the person at each pixel of the image (H, W), its z [m], and visible vertices (P,)."""
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
    scene: Scene, drawn: tuple[np.ndarray, np.ndarray, np.ndarray], config: PipelineConfig
) -> list[PlainEvidence | None]:
    """Evidence of every person, from what `draw_people` returns; None for people who are too small."""
    person_map, z_map, visible = drawn
    assert scene.disparity is not None
    disparity = scene.disparity.copy()
    disparity[disparity <= 0] = disparity[disparity > 0].min()
    depth_map, options, people = 1.0 / disparity, config.evidence, list[PlainEvidence | None]()
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
        people[-1] = PlainEvidence(
            depth=(float(depth[keep].mean()), float(depth[ground].mean())),
            z=(float(z[keep].mean()), float(z[ground].mean())),
            depth_std=float(depth[keep].std()),
            slope=float(slope),
            corr=0.0 if np.isnan(corr) else corr,
        )
    return people
