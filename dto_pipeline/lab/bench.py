"""`dto bench`: milliseconds per image of every stage; with `--depth`, the depth network against the whole pipeline.

Without `--depth` a plain loop over people is timed too, in the same process and in turns, so that the ratio holds on a
busy machine; figures are medians over the repeats. The plain loop computes what `maths` and `models.body` define, one
person and one image row at a time: bodies in single precision by matrix products, each drawn alone by the same
rasteriser, then its evidence.

With `--depth` the network alone is timed by CUDA events (on a CPU by the clock), with inputs that are on the device
already. The whole pipeline runs over at least `WINDOWS` windows of images, so that loading, network and optimiser
overlap as in a long shard. The network's arithmetic (multiply-adds of all matrix products and convolutions, times two)
is compared with the rate of one large matrix product on this device.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import STAND_IN_BODY, PipelineConfig
from dto_pipeline.data.images import ImageStore, read_image
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.scenes import SceneLoader
from dto_pipeline.lab.crowd_files import BENCH_PEOPLE, BENCH_SIZE, build_bench_data
from dto_pipeline.maths.camera import map_intrinsics
from dto_pipeline.models.body import BodyModel, chain_joints, load_body, rotate
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.models.rasterizer import Raster, count_visible_vertices, face_bits, rasterize
from dto_pipeline.models.seeing import Perception
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.run.placing import ScenePlacer, size_on
from dto_pipeline.scene import OptimizedScenes, PlacedScene, Scene
from dto_pipeline.timing import StageClock

STAGES = ("read", "decode", "masks", "depth", "collate", "body", "rasterizer", "evidence", "solver", "split", "write")
COMPARED = ("body", "rasterizer", "evidence")  # stages of the plain loop
ENLARGED = 9  # times VGA on each side: 24.9 Mpx
GOAL_MS = 18.0  # all but depth, one core, 640 x 480, 5 people
WINDOWS = 16  # least number of windows, of four network batches each
GOAL_END_TO_END = 0.95  # images a second over those of the network alone
GOAL_PEAK = 0.45  # share of the device's peak, with ViT-L
_MATRIX = {"cpu": 1024, "cuda": 8192}  # side of the product that stands for the device's peak; bfloat16 on a GPU
_IMAGES = f"images of {BENCH_SIZE[0]} x {BENCH_SIZE[1]}, {BENCH_PEOPLE} people each"
Figures = dict[str, Any]


def _device() -> tuple[str, str]:
    """ "cuda" or "cpu", and its name."""
    if torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_name()
    return "cpu", "CPU"


def run_bench(images: int, repeats: int, config: PipelineConfig) -> tuple[Figures, str]:
    """Make scenes, then time every stage on them, on one thread, in the batches of `dto run` on this device.

    Returns:
        The figures, and the same as text.
    """
    device, name = _device()
    torch.set_num_threads(1)
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    with tempfile.TemporaryDirectory() as folder:
        manifest = build_bench_data(Path(folder), images, body)
        optimizer, plain_body, times = SceneOptimizer(body.to(device), config), PlainBody(body), []
        for repeat in range(repeats + 1):  # the first one warms up
            optimizer.clock, plain = StageClock(synchronize=True), StageClock()
            scenes, first = _run_batched(manifest, optimizer, Path(folder) / f"labels-{repeat}.parquet")
            if device == "cpu":
                run_plain_loop(scenes, plain_body, config, plain)
            times.append((optimizer.clock.seconds, plain.seconds))
        evidence = _time_evidence(optimizer, first, 1), _time_evidence(optimizer, first, ENLARGED)
    batched, plain_loop = (
        {stage: 1000 / images * statistics.median(one[side][stage] for one in times[1:]) for stage in stages}
        for side, stages in enumerate((STAGES, COMPARED if device == "cpu" else ()))
    )
    figures = {
        "images": images,
        "repeats": repeats,
        "device": name,
        "batched": batched,  # ms an image, by stage
        "plain": plain_loop,
        "evidence_ms_per_mpx": evidence,  # CPU time, of one image as it is and enlarged by `ENLARGED`
        "ratio": sum(plain_loop.values()) / sum(batched[stage] for stage in COMPARED),
        "all_but_depth_ms": sum(batched.values()) - batched["depth"],
        "goal_ms": GOAL_MS,
    }
    lines = [f"{images} {_IMAGES}; {name}, one thread; median of {repeats} runs, ms per image", ""]
    lines.append(f"{'stage':<12} {'batched':>8} {'plain loop':>11}")
    for stage, ms in batched.items():
        beside = f"{plain_loop[stage]:>11.2f}" if stage in plain_loop else ""
        note = "  (reading precomputed maps)" if stage == "depth" else ""
        lines.append(f"{stage:<12} {ms:>8.2f} {beside}{note}".rstrip())
    lines += ["", f"all but depth {figures['all_but_depth_ms']:.1f} ms an image (goal {GOAL_MS:.0f})"]
    lines.append(f"{' + '.join(COMPARED)}: plain loop / batched = {figures['ratio']:.1f}")
    mpx = BENCH_SIZE[0] * BENCH_SIZE[1] / 1e6
    lines.append(
        f"evidence per Mpx: {evidence[0]:.1f} ms at {mpx:.1f} Mpx, {evidence[1]:.1f} at {mpx * ENLARGED**2:.1f}"
    )
    return figures, "\n".join(lines)


def _run_batched(manifest: Manifest, optimizer: SceneOptimizer, labels: Path) -> tuple[list[Scene], OptimizedScenes]:
    """The shard's scenes, and the result of the first batch."""
    config, clock = optimizer.config, optimizer.clock
    with clock("read"):
        rows = manifest.read_shard(0)
    depth = DepthFiles(Path(manifest.depth_root or ""))
    loader = SceneLoader(ImageStore(manifest.images_root), depth, config.evidence.render_max_side)
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
    """CPU milliseconds per Mpx of the evidence of a batch's first image, enlarged by `factor`; the least of three."""
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


class PlainBody:
    """Computes bodies one by one in single precision: blend shapes, then skinning."""

    def __init__(self, body: BodyModel) -> None:
        self.body = body
        self._template = body._template.T.to(torch.float32)
        self._blend = (body._blend.values * body._blend.scale[:, None]).unflatten(1, (3, -1)).mT.flatten(1).float()
        self._weights = (body._weights.values * body._weights.scale[:, None]).T.to(torch.float32)

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
) -> list[dict[str, Any] | None]:
    """Evidence of every person, from what `draw_people` returns; None for people who are too small.

    ``depth`` and ``z`` are pairs, of all pixels and of ground pixels.
    """
    person_map, z_map, visible = drawn
    assert scene.disparity is not None
    disparity = scene.disparity.copy()
    disparity[disparity <= 0] = disparity[disparity > 0].min()
    depth_map, options, people = 1.0 / disparity, config.evidence, list[dict[str, Any] | None]()
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
        people[-1] = {
            "depth": (float(depth[keep].mean()), float(depth[ground].mean())),
            "z": (float(z[keep].mean()), float(z[ground].mean())),
            "depth_std": float(depth[keep].std()),
            "slope": float(slope),
            "corr": 0.0 if np.isnan(corr) else corr,
        }
    return people


def run_depth_bench(images: int, repeats: int, config: PipelineConfig) -> tuple[Figures, str]:
    """Time, in turns, the depth network alone and the whole pipeline from files to labels.

    Args:
        images: how many different ones of 640 x 480; they are repeated until `WINDOWS` windows are full.
        repeats: of both measurements, after one to warm up.
        config: `depth.model` is the network. A CPU gets one image at a time unless `depth.batch` differs, so that
            windows are of four images there.

    Returns:
        The figures, and the same as text.

    Raises:
        ModelMissing, ModelError: the network cannot be loaded.
    """
    device, name = _device()
    at_once = config.depth.batch or int(device == "cpu")
    config = replace(config, depth=replace(config.depth, source="model", batch=at_once))
    body = load_body(config.body.model_path or STAND_IN_BODY, config.body.kid_axis)
    with tempfile.TemporaryDirectory() as folder:
        manifest = build_bench_data(Path(folder), images, body)
        perception = Perception(config, body.to(device), device)
        assert perception.depth is not None
        network, window = perception.depth, 4 * perception.depth.at_once
        rounds = -(-WINDOWS * window // images)
        times = [_time_once(manifest, config, body, perception, rounds) for _ in range(repeats + 1)][1:]
    names = sorted({key for one in times for key in one})
    median = {key: statistics.median(one.get(key, 0.0) for one in times) for key in names}
    count, size = images * rounds, network.recipe.size(*BENCH_SIZE[::-1])
    alone, whole = count / median.pop("alone"), count / median.pop("whole")
    busy, stages = median.pop("busy"), {stage: 1000 * seconds / count for stage, seconds in median.items()}
    tflop, peak = depth_flops(network.network, *size) / 1e12, _peak_tflops(device)
    figures = {
        "images": count,
        "windows": count // window,
        "device": name if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "model": network.identity.short,
        "network_size": size,  # (h, w) [px]
        "batch": network.at_once,
        "alone_per_s": alone,  # images of the network alone
        "end_to_end_per_s": whole,  # images from files to labels
        "busy": busy,  # share of the end-to-end time in which the network runs
        "tflop_per_image": tflop,
        "peak_tflops": peak,  # of one large matrix product, in the network's precision
        "stage_ms": stages,  # per image, all threads together
        "share_of_peak": alone * tflop / peak,
        "overlap": whole / alone,
    }
    lines = [
        f"{count} {_IMAGES}, in {count // window} windows; {figures['device']}; {network.identity.short}",
        f"network input {size[1]} x {size[0]}, batches of {network.at_once}, {1000 * tflop:.1f} GFLOP an image",
        "",
        f"depth network alone   {alone:9.2f} images/s",
        f"end to end            {whole:9.2f} images/s = {whole / alone:.2f} of it (goal {GOAL_END_TO_END} on a GPU)",
        f"share of peak         {100 * alone * tflop / peak:8.1f} % of {peak:.2f} TFLOP/s measured "
        f"(goal {100 * GOAL_PEAK:.0f} % at ViT-L on a GPU)",
        f"network busy          {100 * busy:8.1f} % of the end-to-end time",
        "",
        "stage           ms/image, all threads together",
        *(f"{stage:<14} {ms:>9.2f}" for stage, ms in sorted(stages.items(), key=lambda pair: -pair[1])),
    ]
    return figures, "\n".join(lines)


def _time_once(
    manifest: Manifest, config: PipelineConfig, body: BodyModel, perception: Perception, rounds: int
) -> dict[str, float]:
    """Time network and pipeline once, over the manifest's images `rounds` times.

    Returns seconds of the network `alone`, of the `whole` pipeline and of each stage, and the share of the whole in
    which the network is `busy`.
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
    return {**clock.seconds, "alone": alone, "whole": whole, "busy": meter.seconds / whole}


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
    images = ImageStore(Path(manifest.images_root))
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
