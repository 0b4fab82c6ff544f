"""Milliseconds per image of every stage, and how much a plain per-person loop would take for the same.

Everything runs in this process on one thread, the batched code and the plain loop in turn, so that the ratio holds on
a noisy machine. Medians over the repeats.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.scenes import load_scenes
from dto_pipeline.lab.bench_data import PEOPLE, SIZE, build_bench_data
from dto_pipeline.lab.bench_plain import PlainBody, apply_fits, draw_people, measure_people, solve_groups
from dto_pipeline.models.body import load_body
from dto_pipeline.models.depth import DepthFiles
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
        where = f"{self.images} images of {SIZE[0]} x {SIZE[1]}, {PEOPLE} people each"
        lines = [f"{where}; {self.device}, one thread; median of {self.repeats} runs, ms per image", ""]
        lines.append(f"{'stage':<12} {'batched':>8} {'plain loop':>11}")
        for stage in STAGES:
            plain = f"{self.plain[stage]:>11.2f}" if stage in self.plain else ""
            note = "  (reading precomputed maps)" if stage == "depth" else ""
            lines.append(f"{stage:<12} {self.batched[stage]:>8.2f} {plain}{note}".rstrip())
        lines += ["", f"all but depth {self.but_depth:.1f} ms an image (goal {GOAL_MS:.0f})"]
        lines.append(f"{' + '.join(COMPARED)}: plain loop / batched = {self.ratio:.1f}")
        small, large = self.evidence_ms_per_mpx
        mpx = SIZE[0] * SIZE[1] / 1e6
        lines.append(f"evidence per Mpx: {small:.1f} ms at {mpx:.1f} Mpx, {large:.1f} at {mpx * ENLARGED**2:.1f}")
        return "\n".join(lines)


def run_bench(images: int = 16, repeats: int = 5, config: PipelineConfig | None = None) -> BenchReport:
    """Make scenes, then time every stage on them.

    Args:
        images: how many; the batch is that of `dto run` on this device.
        repeats: of the whole, the batched code and the plain loop in turn.
    """
    config = config or PipelineConfig()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(Path(folder), images, repeats, config)
    finally:
        torch.set_num_threads(threads)


def _measure(root: Path, images: int, repeats: int, config: PipelineConfig) -> BenchReport:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis, device)
    manifest = build_bench_data(root, images, body.cpu())
    plain_body = PlainBody(body.cpu())
    optimizer = SceneOptimizer(body.to(device), config, StageClock(synchronize=True))
    batched: dict[str, list[float]] = defaultdict(list)
    plain: dict[str, list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        optimizer.clock = StageClock(synchronize=True)
        scenes, results = _run_batched(manifest, root, optimizer, f"labels-{repeat}.parquet")
        seconds = _run_plain(scenes, plain_body, config) if device == "cpu" else {}
        if repeat == 0:
            continue  # warm-up
        for stage in STAGES:
            batched[stage].append(optimizer.clock.seconds[stage])
        for stage, value in seconds.items():
            plain[stage].append(value)
    per_image = 1000 / images
    return BenchReport(
        images=images,
        repeats=repeats,
        device=torch.cuda.get_device_name() if device == "cuda" else "CPU",
        batched={stage: statistics.median(values) * per_image for stage, values in batched.items()},
        plain={stage: statistics.median(values) * per_image for stage, values in plain.items()},
        evidence_ms_per_mpx=(_time_evidence(optimizer, results[0], 1), _time_evidence(optimizer, results[0], ENLARGED)),
    )


def _run_batched(
    manifest: Manifest, root: Path, optimizer: SceneOptimizer, name: str
) -> tuple[list[Scene], list[OptimizedScenes]]:
    config, clock = optimizer.config, optimizer.clock
    with clock("read"):
        rows = manifest.read_shard(0)
    depth = DepthFiles(Path(manifest.depth_root or ""))
    scenes = load_scenes(rows, Path(manifest.images_root), depth, config.evidence, clock=clock)
    placed, results = [], []
    for part in _batches(scenes, size_on(config, "run.batch_images", optimizer.body.faces.is_cuda)):
        with clock("collate"):
            batch = collate_scenes(part, optimizer.body.faces.device)
        results.append(optimizer(batch))
        with clock("split"):
            placed += split_batch(part, results[-1], config)
    with clock("write"):
        write_label_shard(build_label_table(placed), root / name, {})
    return scenes, results


def _run_plain(scenes: Sequence[Scene], plain: PlainBody, config: PipelineConfig) -> dict[str, float]:
    """Seconds of the plain loop."""
    seconds = dict.fromkeys(COMPARED, 0.0)
    for scene in scenes:
        times = [time.perf_counter()]
        vertices = [plain.vertices(*person) for person in zip(scene.pose, scene.betas, scene.transl, strict=True)]
        times.append(time.perf_counter())
        person, z, visible = draw_people(scene, vertices, plain.body, config)
        times.append(time.perf_counter())
        people = measure_people(scene, person, z, visible, plain.body, config)
        times.append(time.perf_counter())
        apply_fits(scene, people, solve_groups(people, config), plain.body)
        times.append(time.perf_counter())
        for stage, (start, end) in zip(COMPARED, pairwise(times), strict=True):
            seconds[stage] += end - start
    return seconds


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


def _batches(scenes: Sequence[Scene], size: int) -> list[Sequence[Scene]]:
    return [scenes[start : start + size] for start in range(0, len(scenes), size)]
