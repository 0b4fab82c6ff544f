"""`dto bench --depth`: the depth network alone against the whole way from files to labels.

The network alone is timed by CUDA events (on a CPU by the clock), with inputs that are on the device already. The whole
way runs over at least `WINDOWS` windows of images, so that loading, network and optimiser overlap as in a long shard.
The network's arithmetic (multiply-adds of all matrix products and convolutions, times two) is compared with the rate of
one large matrix product on this device.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.images import ImageFolder, read_image
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.lab.bench import IMAGES, BenchReport
from dto_pipeline.lab.demo_data import BENCH_SIZE, build_bench_data
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.models.seeing import Perception
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.placing import ScenePlacer
from dto_pipeline.scene import PlacedScene
from dto_pipeline.timing import StageClock

WINDOWS = 16  # at least, of four network batches each
GOAL_END_TO_END = 0.95  # of the network alone
GOAL_PEAK = 0.45  # of the device, at ViT-L
_MATRIX = {"cpu": 1024, "cuda": 8192}  # side of the product that stands for the device's peak; bfloat16 on a GPU


def run_depth_bench(images: int, repeats: int, config: PipelineConfig) -> BenchReport:
    """Time the depth network alone and the whole way from files to labels, in turn.

    Args:
        images: how many different ones of 640 x 480; they are repeated until `WINDOWS` windows are full.
        repeats: of both, after one that warms up.
        config: `depth.model` is the network. A CPU gets one image at a time unless `depth.batch` differs, so that
            windows are of four images there.

    Raises:
        ModelMissing, ModelError: the network cannot be loaded.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = replace(
        config, depth=replace(config.depth, source="model", batch=config.depth.batch or int(device == "cpu"))
    )
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    with tempfile.TemporaryDirectory() as folder:
        manifest = build_bench_data(Path(folder), images, body)
        perception = Perception(config, body.to(device), device)
        assert perception.depth is not None
        network, window = perception.depth, 4 * perception.depth.at_once
        rounds = -(-WINDOWS * window // images)
        times = [_time_once(manifest, config, body, perception, rounds) for _ in range(repeats + 1)][1:]
    names = sorted({name for one in times for name in one})
    median = {name: statistics.median(one.get(name, 0.0) for one in times) for name in names}

    count, size = images * rounds, network.recipe.size(*BENCH_SIZE[::-1])
    alone, whole = count / median["alone"], count / median["whole"]
    tflop, peak = depth_flops(network.network, *size) / 1e12, _peak_tflops(device)
    figures = {
        "images": count,
        "windows": count // window,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "model": network.identity.short,
        "network_size": size,  # (h, w) [px]
        "batch": network.at_once,
        "alone_per_s": alone,  # images of the network alone
        "end_to_end_per_s": whole,  # images from files to labels
        "busy": median["busy"],  # share of the end-to-end time in which the network runs
        "tflop_per_image": tflop,
        "peak_tflops": peak,  # of one large matrix product, in the network's precision
        "stage_ms": {
            name.removeprefix("stage "): 1000 * x / count for name, x in median.items() if name.startswith("stage ")
        },  # per image, all threads together
        "share_of_peak": alone * tflop / peak,
        "overlap": whole / alone,
    }
    return BenchReport(figures, _as_table(figures))


def _as_table(figures: Mapping[str, Any]) -> str:
    (h, w), stages, gflop = figures["network_size"], figures["stage_ms"], 1000 * figures["tflop_per_image"]
    whole = f"{figures['end_to_end_per_s']:9.2f} images/s = {figures['overlap']:.2f} of it"
    peak = f"{100 * figures['share_of_peak']:8.1f} % of {figures['peak_tflops']:.2f} TFLOP/s measured"
    lines = [
        f"{figures['images']} {IMAGES}, in {figures['windows']} windows; {figures['device']}; {figures['model']}",
        f"network input {w} x {h}, batches of {figures['batch']}, {gflop:.1f} GFLOP an image",
        "",
        f"depth network alone   {figures['alone_per_s']:9.2f} images/s",
        f"end to end            {whole} (goal {GOAL_END_TO_END} on a GPU)",
        f"share of peak         {peak} (goal {100 * GOAL_PEAK:.0f} % at ViT-L on a GPU)",
        f"network busy          {100 * figures['busy']:8.1f} % of the end-to-end time",
        "",
        "stage           ms/image, all threads together",
    ]
    return "\n".join([*lines, *(f"{name:<14} {stages[name]:>9.2f}" for name in sorted(stages, key=stages.get)[::-1])])


def _time_once(
    manifest: Manifest, config: PipelineConfig, body: BodyModel, perception: Perception, rounds: int
) -> dict[str, float]:
    """Both ways once, over the manifest's images `rounds` times: seconds `alone`, `whole` and of each `stage NAME`; the
    share of the whole in which the network is `busy`.
    """
    assert perception.depth is not None
    root = Path(manifest.images_root)
    pictures = [read_image(root / name).rgb for name in manifest.read_shard(0).column("image_file").to_pylist()]
    alone = time_network(perception.depth, pictures, rounds * len(pictures))
    clock, meter, compute = StageClock(), Meter(perception.depth.device.type), perception.depth.compute
    perception.depth.compute = meter(compute)  # type: ignore
    try:
        start = time.perf_counter()
        placed = place_shard(manifest, config, body, perception, clock, rounds)
        with clock("write"):
            write_label_shard(build_label_table(placed), root.parent / "labels.parquet", {})
        whole = time.perf_counter() - start
    finally:
        perception.depth.compute = compute  # type: ignore
    found = {"alone": alone, "whole": whole, "busy": meter.seconds / whole}
    return found | {f"stage {stage}": seconds for stage, seconds in clock.seconds.items()}


class Meter:
    """Adds up the time in which a device ("cuda" or "cpu") does some work: by CUDA events, or on a CPU by the clock."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._marks: list[tuple[Any, Any]] = []

    def __call__(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start, result, end = self._mark(), work(*args, **kwargs), self._mark()
            self._marks.append((start, end))
            return result

        return timed

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def used(self) -> bool:
        """Whether there was any work."""
        return bool(self._marks)

    @property
    def seconds(self) -> float:
        if not self._on_gpu:
            return sum(end - start for start, end in self._marks)
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self._marks) / 1000


def time_network(network: DepthNetwork, pictures: list[Any], times: int) -> float:
    """Seconds a depth network takes for `times` images, in its own batches, from inputs that wait on its device."""
    size, step = network.recipe.size(*pictures[0].shape[:2]), network.at_once
    inputs = [network.recipe.prepare(torch.from_numpy(one)[None].to(network.device), size) for one in pictures]
    meter = Meter(network.device.type)
    compute = meter(network.compute)
    with torch.inference_mode():
        for start in range(0, times, step):
            some = [inputs[number % len(inputs)] for number in range(start, min(start + step, times))]
            compute(torch.cat(some))
    return meter.seconds


def place_shard(
    manifest: Manifest,
    config: PipelineConfig,
    body: BodyModel,
    perception: Perception,
    clock: StageClock,
    rounds: int = 1,
) -> list[PlacedScene]:
    """The first shard of a manifest, so many times over, as a worker does it, with the networks of `perception`."""
    rows = manifest.read_shard(0)
    rows = rows.take(list(range(rows.num_rows)) * rounds)
    images = ImageFolder(Path(manifest.images_root))
    return ScenePlacer(SceneOptimizer(body, config), config, images, None, perception).place(rows, clock)


@torch.no_grad()
def depth_flops(network: torch.nn.Module, height: int, width: int) -> float:
    """Floating point operations (2 per multiply-add) of matrix products and convolutions on one image [px].

    Runs the network once, attention as plain products; normalisation, activations and interpolation do not count. A
    network on the device "meta" costs nothing.
    """
    weight = next(network.parameters())
    image = torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(pixel_values=image)
    return float(counter.get_total_flops())


def _peak_tflops(device: str) -> float:
    side, seconds = _MATRIX[device], []
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    for _ in range(20):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # reading a number waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e12
