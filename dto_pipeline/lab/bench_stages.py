"""Milliseconds per image of every stage, and how much a plain per-person loop would take for the same.

Everything runs in this process on one thread, the batched code and the plain loop in turn, so that the ratio holds on
a noisy machine. Medians over the repeats.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.scenes import load_scenes
from dto_pipeline.lab.bench_plain import PlainBody, apply_fits, draw_people, measure_people, solve_groups
from dto_pipeline.lab.demo_data import BENCH_PEOPLE, BENCH_SIZE, build_bench_data
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
