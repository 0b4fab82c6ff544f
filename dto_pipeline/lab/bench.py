"""`dto bench`: milliseconds per image of every stage beside a plain loop, or the depth network against the whole way.

Everything runs in this process, both sides in turn and in one run, so that ratios hold on a noisy machine; medians over
the repeats. The depth network alone is timed by CUDA events (on a CPU by the clock) on inputs that wait on the device,
over at least `WINDOWS` windows, so that loading, network and optimiser overlap as they do in a long shard. Its
arithmetic (multiply-adds of all matrix products and convolutions, times two) is compared with what this device reaches
on one large matrix product.
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

from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.images import ImageFolder, read_image
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.scenes import load_scenes
from dto_pipeline.lab.demo_data import BENCH_PEOPLE, BENCH_SIZE, build_bench_data
from dto_pipeline.lab.plain_loop import PlainBody, run_plain_loop
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.models.seeing import Perception
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.placing import ScenePlacer, size_on
from dto_pipeline.scene import OptimizedScenes, PlacedScene, Scene
from dto_pipeline.timing import StageClock

STAGES = ("read", "decode", "masks", "depth", "collate", "body", "rasterizer", "evidence", "solver", "split", "write")
COMPARED = ("body", "rasterizer", "evidence", "solver")  # what the plain loop does too
ENLARGED = 9  # times VGA on each side: 24.9 Mpx
GOAL_MS = 18.0  # all but depth, one core, 640 x 480, 5 people
WINDOWS = 16  # at least, of four network batches each
GOAL_END_TO_END = 0.95  # of the network alone
GOAL_PEAK = 0.45  # of the device, at ViT-L
_MATRIX = {"cpu": 1024, "cuda": 8192}  # side of the product that stands for the device's peak; bfloat16 on a GPU
_IMAGES = f"images of {BENCH_SIZE[0]} x {BENCH_SIZE[1]}, {BENCH_PEOPLE} people each"


@dataclass(frozen=True)
class BenchReport:
    """Medians over the repeats, in milliseconds per image."""

    images: int
    repeats: int
    device: str
    batched: dict[str, float]  # by stage
    plain: dict[str, float]  # by stage, COMPARED only
    evidence_ms_per_mpx: tuple[float, float]  # of one image as it is, and enlarged by `ENLARGED`; CPU time

    def to_json(self) -> dict[str, Any]:
        ratio = sum(self.plain.values()) / sum(self.batched[stage] for stage in COMPARED)
        but_depth = sum(value for stage, value in self.batched.items() if stage != "depth")
        return {**vars(self), "ratio": ratio, "all_but_depth_ms": but_depth, "goal_ms": GOAL_MS}

    def as_table(self) -> str:
        figures = self.to_json()
        lines = [f"{self.images} {_IMAGES}; {self.device}, one thread; median of {self.repeats} runs, ms per image", ""]
        lines.append(f"{'stage':<12} {'batched':>8} {'plain loop':>11}")
        for stage in STAGES:
            plain = f"{self.plain[stage]:>11.2f}" if stage in self.plain else ""
            note = "  (reading precomputed maps)" if stage == "depth" else ""
            lines.append(f"{stage:<12} {self.batched[stage]:>8.2f} {plain}{note}".rstrip())
        lines += ["", f"all but depth {figures['all_but_depth_ms']:.1f} ms an image (goal {GOAL_MS:.0f})"]
        lines.append(f"{' + '.join(COMPARED)}: plain loop / batched = {figures['ratio']:.1f}")
        small, large = self.evidence_ms_per_mpx
        mpx = BENCH_SIZE[0] * BENCH_SIZE[1] / 1e6
        lines.append(f"evidence per Mpx: {small:.1f} ms at {mpx:.1f} Mpx, {large:.1f} at {mpx * ENLARGED**2:.1f}")
        return "\n".join(lines)


def run_bench(images: int = 16, repeats: int = 5, config: PipelineConfig | None = None) -> BenchReport:
    """Make scenes, then time every stage on them, on one thread.

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
                    run_plain_loop(scenes, plain_body, config, plain)
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
            f"{self.images} {_IMAGES}, in {self.windows} windows; {self.device}; {self.model}",
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
        ]
        lines += [f"{name:<14} {100 * x:>5.1f} %  {100 - 100 * x:>5.1f} %" for name, x in self.thread_busy.items()]
        lines += ["", "stage           ms/image, threads added up"]
        return "\n".join([*lines, *(f"{stage:<14} {ms:>9.2f}" for ms, stage in stages)])


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

    def by_name(kind: str, factor: float) -> dict[str, float]:
        return {name.removeprefix(kind): factor * x for name, x in median.items() if name.startswith(kind)}

    count, size = images * rounds, network.recipe.size(*BENCH_SIZE[::-1])
    return DepthBenchReport(
        images=count,
        windows=count // window,
        device=torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        model=network.identity.short,
        network_size=size,
        batch=network.at_once,
        alone_per_s=count / median["alone"],
        end_to_end_per_s=count / median["whole"],
        busy=median["busy"],
        tflop_per_image=depth_flops(network.network, *size) / 1e12,
        peak_tflops=_peak_tflops(device),
        stage_ms=by_name("stage ", 1000 / count),
        thread_busy=by_name("thread ", 1.0),
    )


def _time_once(
    manifest: Manifest, config: PipelineConfig, body: BodyModel, perception: Perception, rounds: int
) -> dict[str, float]:
    """Both ways once, over the manifest's images `rounds` times: seconds `alone`, `whole`, of `stage NAME`; the share
    of the whole in which the network is `busy`, and each `thread NAME`.
    """
    assert perception.depth is not None
    root = Path(manifest.images_root)
    pictures = [read_image(root / name).rgb for name in manifest.read_shard(0).column("image_file").to_pylist()]
    alone = time_network(perception.depth, pictures, rounds * len(pictures))
    clock, meter, compute = _ThreadClock(), Meter(perception.depth.device.type), perception.depth.compute
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
    found |= {f"stage {stage}": seconds for stage, seconds in clock.seconds.items()}
    return found | {f"thread {name}": seconds / whole for name, seconds in clock.threads.items()}


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
