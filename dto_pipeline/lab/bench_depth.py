"""Is the depth network the only work? Images per second of the network alone and from files to labels, in one run.

Both are measured on the same images over at least `WINDOWS` windows, so that loading, network and optimiser overlap as
they do in a long shard: the network alone by CUDA events (on a CPU by the clock) on inputs that wait on the device. The
network's arithmetic is counted (multiply-adds of all matrix products and convolutions, times two) and compared with
what this device reaches on one large matrix product. Knows neither workers nor files of a run. Seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.images import ImageFolder, read_image
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.lab.demo_data import BENCH_PEOPLE, BENCH_SIZE, build_bench_data
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.models.seeing import Sight
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.placing import ScenePlacer
from dto_pipeline.scene import PlacedScene
from dto_pipeline.timing import StageClock

WINDOWS = 16  # at least, of four network batches each
GOAL_END_TO_END = 0.95  # of the network alone
GOAL_PEAK = 0.45  # of the device, at ViT-L
_MATRIX = {
    "cpu": 1024,
    "cuda": 8192,
}  # side of the product that stands for the device's peak: bfloat16 on a GPU, float32 on a CPU


@dataclass(frozen=True)
class DepthBenchReport:
    """Medians over the repeats."""

    images: int
    windows: int
    device: str
    model: str
    network_size: tuple[int, int]  # (h, w) the network sees [px]
    batch: int
    alone_per_s: float  # images of the network alone
    end_to_end_per_s: float  # images from files to labels
    busy: float  # share of the end-to-end time in which the network runs
    tflop_per_image: float
    peak_tflops: float  # of one large matrix product here, in the network's precision
    stage_ms: dict[str, float]  # per image, threads added up
    thread_busy: dict[str, float]  # share of the end-to-end time; the rest each thread waits for the others

    @property
    def share_of_peak(self) -> float:
        """Of the device's measured peak, while the network runs alone."""
        return self.alone_per_s * self.tflop_per_image / self.peak_tflops

    @property
    def overlap(self) -> float:
        """End to end over the network alone."""
        return self.end_to_end_per_s / self.alone_per_s

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "share_of_peak": self.share_of_peak, "overlap": self.overlap}

    def as_table(self) -> str:
        h, w = self.network_size
        stages = sorted(((ms, stage) for stage, ms in self.stage_ms.items()), reverse=True)
        lines = [
            f"{self.images} images of {BENCH_SIZE[0]} x {BENCH_SIZE[1]}, {BENCH_PEOPLE} people each, in {self.windows} "
            f"windows; {self.device}; {self.model}",
            f"network input {w} x {h}, batches of {self.batch}, {1000 * self.tflop_per_image:.1f} GFLOP an image",
            "",
            f"depth network alone   {self.alone_per_s:9.2f} images/s",
            f"end to end            {self.end_to_end_per_s:9.2f} images/s = {self.overlap:.2f} of it "
            f"(goal {GOAL_END_TO_END} on a GPU)",
            f"share of peak         {100 * self.share_of_peak:8.1f} % of {self.peak_tflops:.2f} TFLOP/s measured "
            f"(goal {100 * GOAL_PEAK:.0f} % at ViT-L on a GPU)",
            f"network busy          {100 * self.busy:8.1f} % of the end-to-end time",
            "",
            "thread            busy   waits",
            *(
                f"{name:<14} {100 * share:>5.1f} %  {100 - 100 * share:>5.1f} %"
                for name, share in self.thread_busy.items()
            ),
            "",
            "stage           ms/image, threads added up",
            *(f"{stage:<14} {ms:>9.2f}" for ms, stage in stages),
        ]
        return "\n".join(lines)


def run_depth_bench(images: int = 16, repeats: int = 3, config: PipelineConfig | None = None) -> DepthBenchReport:
    """Time the depth network alone and the whole way from files to labels, in turn.

    Args:
        images: how many different ones of 640 x 480; they come again until `WINDOWS` windows are full.
        repeats: of both, in turn; one more before them warms up.
        config: says which network (`depth.source` must be "model"). A CPU sees one image at a time: there windows are
            of four images unless `depth.batch` says otherwise.

    Raises:
        ModelMissing, ModelError: the network cannot be had.
    """
    config = config or PipelineConfig()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = config.depth.batch or int(device == "cpu")
    config = replace(config, depth=replace(config.depth, source="model", batch=batch))
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    with tempfile.TemporaryDirectory() as folder:
        manifest = build_bench_data(Path(folder), images, body)
        sight = Sight(config, body.to(device), device)
        assert sight.depth is not None
        window = 4 * (batch or sight.depth.at_once)
        rounds = -(-WINDOWS * window // images)
        times = [_time_once(manifest, config, body, sight, rounds) for _ in range(repeats + 1)]
    return _report(times[1:], sight.depth, images * rounds, images * rounds // window, device)


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


class _ThreadClock(StageClock):
    """Knows too how long each thread was in any stage."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: dict[str, float] = defaultdict(float)
        self._inside = threading.local()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        level, start = getattr(self._inside, "level", 0), time.perf_counter()
        self._inside.level = level + 1
        try:
            with super().__call__(stage):
                yield
        finally:
            self._inside.level = level
            if level == 0 and not stage.startswith("wait"):
                self.threads[threading.current_thread().name] += time.perf_counter() - start


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
    pixels = [torch.from_numpy(picture)[None].to(network.device) for picture in pictures]
    inputs = [network.recipe.prepare(one, size) for one in pixels]
    meter = Meter(network.device.type)
    compute = meter(network.compute)
    with torch.inference_mode():
        for start in range(0, times, step):
            some = [inputs[number % len(inputs)] for number in range(start, min(start + step, times))]
            compute(torch.cat(some))
    return meter.seconds


def place_shard(
    manifest: Manifest, config: PipelineConfig, body: BodyModel, sight: Sight, clock: StageClock, rounds: int = 1
) -> list[PlacedScene]:
    """The first shard of a manifest, so many times over, as a worker does it, with the networks of `sight`."""
    rows = manifest.read_shard(0)
    rows = rows.take(list(range(rows.num_rows)) * rounds)
    images = ImageFolder(Path(manifest.images_root))
    return ScenePlacer(SceneOptimizer(body, config), config, images, None, sight).place(rows, clock)


def _time_once(
    manifest: Manifest, config: PipelineConfig, body: BodyModel, sight: Sight, rounds: int
) -> dict[str, float]:
    """Both ways once, over the manifest's images `rounds` times: seconds `alone`, `whole`, `busy`, of `stage NAME`, and
    the share of `thread NAME` in the whole.
    """
    assert sight.depth is not None
    root = Path(manifest.images_root)
    pictures = [read_image(root / name).rgb for name in manifest.read_shard(0).column("image_file").to_pylist()]
    alone = time_network(sight.depth, pictures, rounds * len(pictures))
    clock, meter, compute = _ThreadClock(), Meter(sight.depth.device.type), sight.depth.compute
    sight.depth.compute = meter(compute)  # type: ignore
    try:
        start = time.perf_counter()
        placed = place_shard(manifest, config, body, sight, clock, rounds)
        with clock("write"):
            write_label_shard(build_label_table(placed), root.parent / "labels.parquet", {})
        whole = time.perf_counter() - start
    finally:
        sight.depth.compute = compute  # type: ignore
    found = {"alone": alone, "whole": whole, "busy": meter.seconds / whole}
    found |= {f"stage {stage}": seconds for stage, seconds in clock.seconds.items()}
    return found | {f"thread {name}": seconds / whole for name, seconds in clock.threads.items()}


def _report(
    times: list[dict[str, float]], network: DepthNetwork, images: int, windows: int, device: str
) -> DepthBenchReport:
    size = network.recipe.size(*BENCH_SIZE[::-1])
    names = sorted({name for one in times for name in one})
    median = {name: statistics.median(one.get(name, 0.0) for one in times) for name in names}
    side = _MATRIX[device]
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # reading a number waits for the device
        seconds.append(time.perf_counter() - start)
    return DepthBenchReport(
        images=images,
        windows=windows,
        device=torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        model=network.identity.short,
        network_size=size,
        batch=network.at_once,
        alone_per_s=images / median["alone"],
        end_to_end_per_s=images / median["whole"],
        busy=median["busy"],
        tflop_per_image=depth_flops(network.network, *size) / 1e12,
        peak_tflops=2 * side**3 / min(seconds) / 1e12,
        stage_ms={
            name.removeprefix("stage "): 1000 / images * value
            for name, value in median.items()
            if name.startswith("stage ")
        },
        thread_busy={
            name.removeprefix("thread "): value for name, value in median.items() if name.startswith("thread ")
        },
    )
