"""Is the depth network the only work? Images per second alone and from end to end, in one run on the same images.

Counts the network's arithmetic from its config (multiply-adds of all matrix products and convolutions, times two) and
compares it with what this device reaches on one large matrix product. Knows neither workers nor files of a run: who
calls says how scenes are placed. Seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.images import read_image
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.lab.bench_data import PEOPLE, SIZE, build_bench_data
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.models.seeing import Sight
from dto_pipeline.scene import PlacedScene
from dto_pipeline.timing import StageClock

GOAL_END_TO_END = 0.9  # of the network alone
GOAL_PEAK = 0.45  # of the device, at ViT-L
_MATRIX = {"cpu": 1024, "cuda": 8192}  # side of the product that stands for the device's peak
Placer = Callable[[Manifest, PipelineConfig, BodyModel, Sight, StageClock], list[PlacedScene]]


@dataclass(frozen=True)
class DepthBenchReport:
    """Medians over the repeats."""

    images: int
    device: str
    model: str
    network_size: tuple[int, int]  # (h, w) the network sees [px]
    batch: int
    alone_per_s: float  # images of the network alone
    end_to_end_per_s: float  # images from files to labels
    tflop_per_image: float
    peak_tflops: float  # of one large matrix product here, in the network's precision
    stage_ms: dict[str, float]  # per image, threads added up
    wall_ms: float  # per image, from end to end

    @property
    def share_of_peak(self) -> float:
        """Of the device's measured peak, while the network runs alone."""
        return self.alone_per_s * self.tflop_per_image / self.peak_tflops

    @property
    def busy(self) -> float:
        """Share of the end-to-end time in which the network runs."""
        return self.stage_ms["depth"] / self.wall_ms

    @property
    def overlap(self) -> float:
        """End to end over the network alone."""
        return self.end_to_end_per_s / self.alone_per_s

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "share_of_peak": self.share_of_peak, "busy": self.busy, "overlap": self.overlap}

    def as_table(self) -> str:
        h, w = self.network_size
        depth = self.stage_ms["depth"]
        total = sum(ms for stage, ms in self.stage_ms.items() if stage != "depth")
        others = sorted(((ms, stage) for stage, ms in self.stage_ms.items() if stage != "depth"), reverse=True)
        lines = [
            f"{self.images} images of {SIZE[0]} x {SIZE[1]}, {PEOPLE} people each; {self.device}; {self.model}",
            f"network input {w} x {h}, batches of {self.batch}, {1000 * self.tflop_per_image:.1f} GFLOP an image",
            "",
            f"depth network alone   {self.alone_per_s:9.2f} images/s",
            f"end to end            {self.end_to_end_per_s:9.2f} images/s = {self.overlap:.2f} of it "
            f"(goal {GOAL_END_TO_END})",
            f"share of peak         {100 * self.share_of_peak:8.1f} % of {self.peak_tflops:.2f} TFLOP/s measured "
            f"(goal {100 * GOAL_PEAK:.0f} % at ViT-L on a GPU)",
            f"network busy          {100 * self.busy:8.1f} % of the end-to-end time",
            "",
            "stage           ms/image  of depth",
            f"{'depth':<14} {depth:>9.2f}",
            *(f"{stage:<14} {ms:>9.2f} {100 * ms / depth:>7.1f} %" for ms, stage in others),
            f"{'all others':<14} {total:>9.2f} {100 * total / depth:>7.1f} %",
        ]
        return "\n".join(lines)


def run_depth_bench(
    place: Placer, images: int = 32, repeats: int = 3, config: PipelineConfig | None = None
) -> DepthBenchReport:
    """Time the depth network alone and the whole way from files to labels, in turn.

    Args:
        place: makes placed scenes of a manifest's first shard, as a worker does.
        images: how many of 640 x 480.
        repeats: of both, in turn; one more before them warms up.
        config: says which network (`depth.source` must be "model").

    Raises:
        ModelMissing, ModelError: the network cannot be had.
    """
    config = config or PipelineConfig()
    config = replace(config, depth=replace(config.depth, source="model"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    with tempfile.TemporaryDirectory() as folder:
        manifest = build_bench_data(Path(folder), images, body)
        sight = Sight(config, body.to(device), device)
        times = [_time_once(place, manifest, config, body, sight, Path(folder) / str(i)) for i in range(repeats + 1)]
    return _report(times[1:], sight, images, device)


def depth_flops(network_config: Any, height: int, width: int) -> float:
    """Floating point operations (2 per multiply-add) of Depth Anything on one image of this size [px].

    Counts matrix products and convolutions of backbone, neck and head; normalisation, activations and interpolation are
    left out (below 1 %).
    """
    backbone, patch = network_config.backbone_config, network_config.patch_size
    rows, columns = height // patch, width // patch
    tokens, hidden = rows * columns + 1, backbone.hidden_size
    block = (4 + 2 * backbone.mlp_ratio) * tokens * hidden**2 + 2 * tokens**2 * hidden
    total = rows * columns * hidden * 3 * patch**2 + backbone.num_hidden_layers * block
    fusion, channels = network_config.fusion_hidden_size, network_config.neck_hidden_sizes
    places = []
    for factor, width_out in zip(network_config.reassemble_factors, channels, strict=True):
        h, w = (max(1, -int(-side * factor // 1)) for side in (rows, columns))
        places.append(h * w)
        total += rows * columns * hidden * width_out + h * w * 9 * width_out * fusion
        if factor > 1:
            total += rows * columns * (factor * width_out) ** 2
        elif factor < 1:
            total += h * w * 9 * width_out**2
    for index, here in enumerate(places):  # fusion: two convolutions each in one or two residual units, one projection
        units = 1 if index == len(places) - 1 else 2
        above = 4 * here if index == 0 else places[index - 1]
        total += here * units * 2 * 9 * fusion**2 + above * fusion**2
    half, last = fusion // 2, network_config.head_hidden_size
    pixels = rows * columns * patch**2
    total += 4 * places[0] * 9 * fusion * half + pixels * (9 * half * last + last)
    return 2.0 * total


def _time_once(
    place: Placer, manifest: Manifest, config: PipelineConfig, body: BodyModel, sight: Sight, out: Path
) -> tuple[float, float, dict[str, float]]:
    """Seconds of the network alone, of the whole, and by stage of the whole."""
    assert sight.depth is not None
    root = Path(manifest.images_root)
    pictures = [read_image(root / name).rgb for name in manifest.read_shard(0).column("image_file").to_pylist()]
    start = time.perf_counter()
    sight.depth.estimate(pictures)
    alone = time.perf_counter() - start
    clock = StageClock()
    start = time.perf_counter()
    placed = place(manifest, config, body, sight, clock)
    with clock("write"):
        write_label_shard(build_label_table(placed), out, {})
    return alone, time.perf_counter() - start, dict(clock.seconds)


def _report(
    times: list[tuple[float, float, dict[str, float]]],
    sight: Sight,
    images: int,
    device: str,
) -> DepthBenchReport:
    assert sight.depth is not None
    size = sight.depth.recipe.size(SIZE[1], SIZE[0])
    network_config = sight.depth.network.config
    known = network_config.model_type == "depth_anything"
    stages = {stage for _, _, seconds in times for stage in seconds if not stage.startswith("wait")}
    return DepthBenchReport(
        images=images,
        device=torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        model=sight.depth.identity.short,
        network_size=size,
        batch=sight.depth.at_once,
        alone_per_s=images / statistics.median(alone for alone, _, _ in times),
        end_to_end_per_s=images / statistics.median(whole for _, whole, _ in times),
        tflop_per_image=depth_flops(network_config, *size) / 1e12 if known else float("nan"),
        peak_tflops=_measure_peak(device),
        stage_ms={
            stage: 1000 / images * statistics.median(seconds.get(stage, 0.0) for _, _, seconds in times)
            for stage in sorted(stages)
        },
        wall_ms=1000 / images * statistics.median(whole for _, whole, _ in times),
    )


def _measure_peak(device: str) -> float:
    """TFLOP/s of a large matrix product: bfloat16 on a GPU, float32 on a CPU; the best of twenty."""
    side = _MATRIX[device]
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # reading a number waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e12
