"""The steps of `jobs/gpu_check.py`: each returns figures for the JSON file and a table as text.

Figures are numbers, their names hold the unit. On a GPU times are CUDA events, on a CPU its clock. Parts of the
optimiser are timed by wrapping the functions that it calls.
"""

from __future__ import annotations

import copy
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu_data import Place, build_network, draw_pictures, make_batch, make_learner, read_pictures
from gpu_measure import (
    PARTS,
    busy_stream,
    compare_devices,
    count_waits,
    digest_of,
    least_ms,
    seconds_of,
    time_parts,
    wait_for,
)

from dto_pipeline.lab.bench import depth_flops, place_shard
from dto_pipeline.lab.crowd_files import BENCH_PEOPLE
from dto_pipeline.lab.golden_labels import check_image_cases
from dto_pipeline.maths.ordered import Segments
from dto_pipeline.models.body import load_body
from dto_pipeline.models.depth_anything import DepthNetwork, computing_in, halve_weights
from dto_pipeline.models.seeing import Perception
from dto_pipeline.run.report import read_status
from dto_pipeline.timing import StageClock

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Report:
    """Result of a step. `state`: "done", or what is wrong."""

    figures: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    state: str = "done"


def machine(place: Place) -> Report:
    """Device and versions; TFLOP/s of a large matrix product by precision, TB/s of a copy on the device."""
    device, side = place.device, place.pick(8192, 256)
    figures: dict[str, Any] = {"device_type": device.type, "cpus": os.cpu_count(), "python": platform.python_version()}
    figures["device"] = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    for name in ("torch", "transformers", "numpy", "pyarrow", "scipy", "smplx", "simplejpeg", "ray"):
        try:
            figures[name] = version(name)
        except PackageNotFoundError:
            figures[name] = "absent"
    if device.type == "cpu" and not place.small:
        return Report(figures, "  no CUDA device", "no CUDA device")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        figures |= {"memory_gb": round(total / 1e9, 1), "free_gb": round(free / 1e9, 1), "cuda": torch.version.cuda}
    for word, dtype in (("bfloat16", torch.bfloat16), ("tf32", torch.float32), ("float32", torch.float32)):
        matrix = torch.randn(side, side, device=device).to(dtype)
        with computing_in(word if word != "bfloat16" else "float32", device):
            figures[f"{word}_tflops"] = round(
                2e-9 * side**3 / least_ms(partial(torch.matmul, matrix, matrix), device, 5), 2
            )
    block = torch.empty(place.pick(1 << 30, 1 << 20), dtype=torch.uint8, device=device)
    figures["copy_tb_s"] = round(2e-9 * len(block) / least_ms(block.clone, device, 5), 3)
    return Report(figures, "\n".join(f"  {name:<16} {value}" for name, value in figures.items()))


def pictures(place: Place) -> Report:
    """Draw crowds of five, repeat them under other names, and write a manifest, full HD pictures and a network."""
    images, distinct, large = draw_pictures(place)
    figures = {"images": images, "distinct": distinct, "full_hd": large, "people_an_image": BENCH_PEOPLE}
    return Report(
        figures, f"  {images} images ({distinct} distinct) with {BENCH_PEOPLE} people each, {large} of full HD"
    )


def tests(place: Place) -> Report:
    """The tests marked gpu, found by their mark, so that files which need other packages are not imported."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text())
    counts = _Outcomes()
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *files], plugins=[counts])
    outcomes = ", ".join(f"{count} {word}" for word, count in counts.found.items())
    all_ran = place.device.type == "cpu" or set(counts.found) == {"passed"}
    return Report(
        {"exit_code": int(code), **counts.found}, f"  {outcomes} in {len(files)} files", _state(code == 0 and all_ran)
    )


class _Outcomes:
    """A plugin of pytest that counts."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.found[report.outcome] += 1


def equal(place: Place) -> Report:
    """Recorded images on the device; evidence there and on the CPU; equal bits in every repetition."""
    device, lines = place.device, []
    cases = check_image_cases(ROOT / "tests" / "golden", device)
    failed = [f"{case.name}: {text}" for case in cases if not case.passed for text in case.failures]
    lines += [
        f"  recorded images: {len(cases) - len(failed)} of {len(cases)} as recorded",
        *(f"    {x}" for x in failed),
    ]
    differing: dict[str, str] = {}
    for mode in ("paper", "joint"):
        worst, found = compare_devices(*make_batch(place, place.pick(16, 2), 1, mode))
        lines.append(f"  {mode}: evidence and people as on the CPU, worst relative difference {worst:.1e}")
        lines += [f"    differs: {name} {text}" for name, text in found.items()]
        differing |= {f"{mode} {name}": text for name, text in found.items()}
    right = not failed and bool(cases) and not differing
    repeats = place.pick(20, 3)
    again: dict[str, int] = {}
    for mode in ("paper", "joint"):
        optimizer, batch = make_batch(place, 8, 1, mode)
        for busy in (False, True):
            with busy_stream(device) if busy else nullcontext():
                digests = {digest_of(optimizer(batch)) for _ in range(repeats)}
            again[f"{mode}{', another stream busy' if busy else ''}"] = len(digests)
    network = DepthNetwork(place.seeing().depth, device)
    images = read_pictures(place, place.pick(8, 2))
    maps = {
        hashlib.sha256(b"".join(_array(m).tobytes() for m in network.estimate(images))).hexdigest()
        for _ in range(repeats)
    }
    again["depth network"] = len(maps)
    lines += [f"  {what}: {count} different results of {repeats}" for what, count in again.items()]
    right = right and all(count == 1 for count in again.values())
    figures = {"cases": len(cases), "failed": failed, "differing": differing, "different_results": again}
    return Report(figures, "\n".join(lines), _state(right))


def syncs(place: Place) -> Report:
    """How often the CPU waits for the GPU in one batch, and at which lines."""
    figures: dict[str, Any] = {}
    lines = []
    for mode in ("paper", "joint"):
        optimizer, batch = make_batch(place, place.pick(32, 2), 1, mode)
        found = count_waits(partial(optimizer, batch), place.device)
        figures[mode] = {"count": sum(found.values()), "places": dict(found.most_common())}
    learner, batch = make_learner(place, 2)
    found = count_waits(lambda: learner.step(batch, 1), place.device)
    figures["training step"] = {"count": sum(found.values()), "places": dict(found.most_common())}
    for name, one in figures.items():
        lines.append(f"  {name}: {one['count']}")
        lines += [f"    {count:>4} {where}" for where, count in list(one["places"].items())[:12]]
    return Report(figures, "\n".join(lines))


def micro(place: Place) -> Report:
    """Milliseconds an image of each part, inside whole passes of the optimiser."""
    figures: dict[str, Any] = {}
    lines = [f"  {'ms an image':<26}" + "".join(f"{name[:12]:>13}" for name in ("vertices", *PARTS))]
    for mode in ("paper", "joint"):
        for images, groups in place.pick([(8, 1), (32, 1), (64, 1), (8, 4), (32, 4)], [(2, 1), (2, 2)]):
            optimizer, batch = make_batch(place, images, groups, mode)
            times = time_parts(optimizer, batch, place.device, place.pick(7, 1))
            name = f"{mode} {images} x {BENCH_PEOPLE * groups}"
            figures[name] = {part: round(ms / images, 4) for part, ms in times.items()}
            cells = "".join(f"{times.get(part, float('nan')) / images:>13.3f}" for part in ("vertices", *PARTS))
            lines.append(f"  {name:<26}{cells}{times['whole'] / images:>9.3f} in all")
    figures["segment sums"] = _segment_sums(place)
    lines += [f"  {name}: {ms:.3f} ms" for name, ms in figures["segment sums"].items()]
    return Report(figures, "\n".join(lines))


def network(place: Place) -> Report:
    """Images a second of the network alone by precision, batch and input size, and the share of the device's peak."""
    sizes = place.pick([((518, 686), batch) for batch in (32, 8, 1, 16)] + [((518, 924), 16)], [((56, 70), 2)])
    base = build_network(place).eval().to(place.device)
    figures: dict[str, Any] = {}
    deadline = time.monotonic() + place.pick(70, 20)
    for name, make, precision in _ways_to_compute(place):
        model = make(copy.deepcopy(base))
        for size, batch in sizes:
            if time.monotonic() < deadline:
                what = f"{name}, {size[1]} x {size[0]}, batch {batch}"
                figures[what] = _rate_network(place, model, base, precision, size, batch)
        del model
    return Report(figures, "\n".join(f"  {what}: {_listed(one)}" for what, one in figures.items()))


def compiled(place: Place) -> Report:
    """The network compiled by torch, which takes long; at one size and batch."""
    if place.device.type == "cpu":
        return Report({}, "  left out on a CPU")
    base = build_network(place).eval()
    halve_weights(base, torch.bfloat16)
    figures = _rate_network(place, torch.compile(base), base, "float32", (518, 686), 32)
    return Report(figures, f"  bfloat16 weights, 686 x 518, batch 32: {_listed(figures)}")


def _ways_to_compute(place: Place) -> Iterator[tuple[str, Callable[[Any], Any], str]]:
    """Name, function that changes the float32 network, and precision of the computation."""

    def halved(half: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Callable[[Any], Any]:
        def make(model: Any) -> Any:
            halve_weights(model, half)
            return model.to(memory_format=layout)

        return make

    if place.device.type == "cpu":
        yield "float32", lambda model: model, "float32"
        return
    yield "bfloat16 weights", halved(torch.bfloat16), "float32"
    yield "bfloat16 weights, channels_last", halved(torch.bfloat16, torch.channels_last), "float32"
    yield "float16 weights", halved(torch.float16), "float32"
    yield "tf32", lambda model: model, "tf32"
    yield "float32 weights under autocast", lambda model: model, "bfloat16"


def _rate_network(
    place: Place, model: Any, plain: Any, precision: str, size: tuple[int, int], batch: int
) -> dict[str, Any]:
    inputs = torch.randn(batch, 3, *size, device=place.device, dtype=next(model.parameters()).dtype)
    if any(weight.ndim == 4 and not weight.is_contiguous() for weight in model.parameters()):
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), computing_in(precision, place.device):
        output = model(pixel_values=inputs).predicted_depth
        ms = least_ms(lambda: model(pixel_values=inputs), place.device, place.pick(5, 1))
    tflops = depth_flops(plain, *size) * batch / ms / 1e9
    peak = json.loads((place.out / "machine.json").read_text())["figures"]["bfloat16_tflops"]
    return {
        "images_per_s": round(1000 * batch / ms, 1),
        "tflops": round(tflops, 2),
        "share_of_bf16_peak": round(tflops / peak, 3),
        "finite": bool(output.isfinite().all()),
    }


def split(place: Place) -> Report:
    """Milliseconds an image of the parts of `DepthNetwork.estimate`, one after the other, and of all of it."""
    device, count = place.device, place.pick(512, 4)
    network = DepthNetwork(place.seeing(f"depth.batch={place.pick(32, 2)}").depth, device)
    figures: dict[str, Any] = {}
    for name, images in (
        ("640 x 480", read_pictures(place, count)),
        ("full HD", read_pictures(place, max(1, count // 8), "tall")),
    ):
        network.estimate(images[: network.at_once])
        started = time.perf_counter()
        network.estimate(images)
        whole = 1000 * (time.perf_counter() - started) / len(images)
        parts: dict[str, float] = defaultdict(float)
        for start in range(0, len(images), network.at_once):
            for part, ms in _estimate_in_parts(network, images[start : start + network.at_once], device):
                parts[part] += ms / len(images)
        figures[name] = {
            **{part: round(ms, 3) for part, ms in parts.items()},
            "sum": round(sum(parts.values()), 3),
            "estimate": round(whole, 3),
        }
    lines = [
        f"  {name}: " + ", ".join(f"{part} {ms:.2f}" for part, ms in one.items()) + " ms"
        for name, one in figures.items()
    ]
    return Report(figures, "\n".join(lines))


def end_to_end(place: Place) -> Report:
    """Images a second from files to placed people, and their ratio to the network alone on the same images."""
    device, manifest = place.device, place.manifest
    body = load_body("demo").to(device)
    figures: dict[str, Any] = {}
    lines = [f"  {'batch':>6} {'threads':>8} {'end to end':>11} {'alone':>8} {'ratio':>6}  busiest stages, ms an image"]
    deadline = time.monotonic() + place.pick(100, 60)
    for batch, threads in place.pick([(32, 8), (32, 4), (64, 8), (8, 4), (32, 2), (8, 2), (64, 4)], [(2, 1)]):
        if time.monotonic() > deadline:
            break
        config = place.seeing(f"depth.batch={batch}", f"run.batch_images={batch}", f"run.decode_threads={threads}")
        perception = Perception(config, body, device)
        assert perception.depth is not None
        images = read_pictures(place, place.pick(256, 4))
        perception.depth.estimate(images[:batch])
        alone = len(images) / seconds_of(partial(perception.depth.estimate, images))
        clock = StageClock()
        seconds = seconds_of(partial(place_shard, manifest, config, body, perception, clock))
        rate = manifest.num_images / seconds
        stages = {stage: round(1000 * value / manifest.num_images, 3) for stage, value in clock.seconds.items()}
        figures[f"batch {batch}, {threads} threads"] = {
            "images_per_s": rate,
            "alone": alone,
            "ratio": rate / alone,
            "ms": stages,
        }
        busiest = sorted(stages.items(), key=lambda pair: -pair[1])[:5]
        slowest = ", ".join(f"{stage} {ms:.2f}" for stage, ms in busiest)
        lines.append(f"  {batch:>6} {threads:>8} {rate:>11.1f} {alone:>8.1f} {rate / alone:>6.2f}  {slowest}")
    return Report(figures, "\n".join(lines))


def run(place: Place) -> Report:
    """`dto run --workers 0` twice, into two folders, each in a process of its own."""
    figures: dict[str, Any] = {}
    digests = []
    for number in (1, 2):
        folder = place.scratch / f"run-{number}"
        command = [
            "run",
            str(place.manifest.path),
            "-o",
            str(folder),
            "--workers",
            "0",
            "--set",
            "run.max_failed_images=1",
        ]
        process = multiprocessing.get_context("fork").Process(target=_dto, args=([*command, *place.seen],))
        started = time.perf_counter()
        process.start()
        process.join()
        seconds = time.perf_counter() - started
        status = read_status(folder)
        labels = sorted((folder / "labels").rglob("*.parquet"))
        digests.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in labels])
        figures[f"run {number}"] = {
            "exit_code": process.exitcode,
            "images": status.images_done,
            "images_per_s_in_shards": round(status.images_per_s, 1),
            "images_per_s_with_start": round(status.images_done / seconds, 1),
        }
    lines = [
        f"  {name}: " + ", ".join(f"{what} {value}" for what, value in one.items()) for name, one in figures.items()
    ]
    # random weights may well contradict the bodies, for which a run ends with 1
    every = all(one["exit_code"] in (0, 1) and one["images"] == place.manifest.num_images for one in figures.values())
    same = bool(digests[0]) and digests[0] == digests[1]
    lines.append(f"  label files {'equal byte for byte' if same else 'DIFFER'}")
    return Report({**figures, "equal_bytes": same}, "\n".join(lines), _state(same and every))


def _dto(arguments: list[str]) -> None:
    """The command in this process, which is ended with its exit code."""
    from dto_pipeline.cli import main

    sys.exit(main(arguments))


def train(place: Place) -> Report:
    """Ten steps on one batch that is in memory, in bfloat16: the time of the network, without reading images."""
    images, steps, device = place.pick(8, 2), 10, place.device
    learner, batch = make_learner(place, images)
    losses = [learner.step(batch, 0)["loss"]]
    wait_for(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(lambda: losses.extend(learner.step(batch, 1 + step)["loss"] for step in range(steps)))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    side = max(max(image.shape[1:]) for image in batch.images)
    figures = {
        "images_per_s": round(images * steps / seconds, 2),
        "peak_gb": round(peak, 2),
        "batch": images,
        "side": side,
    }
    right = bool(np.isfinite(losses).all())
    rest = f"peak {peak:.1f} GB, loss {losses[0]:.2f} -> {losses[-1]:.2f}"
    table = f"  {figures['images_per_s']} images/s at {side} px, batch {images}, {rest}"
    return Report({**figures, "losses": [round(loss, 3) for loss in losses]}, table, _state(right))


def _listed(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def _state(right: bool) -> str:
    return "done" if right else "NOT AS EXPECTED"


def _array(found: Any) -> np.ndarray:
    if isinstance(found, Exception):
        raise found
    return found.cpu().numpy() if isinstance(found, torch.Tensor) else found


def _estimate_in_parts(
    network: DepthNetwork, images: list[np.ndarray], device: torch.device
) -> list[tuple[str, float]]:
    """The parts of `estimate` on images of one size, with a wait after each."""
    size, found = network.recipe.size(*images[0].shape[:2]), []

    def step(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        wait_for(device)
        found.append((name, 1000 * (time.perf_counter() - started)))
        return result

    stacked = step("stack", lambda: torch.from_numpy(np.stack(images)))
    pixels = step("copy there", lambda: (stacked.pin_memory() if device.type == "cuda" else stacked).to(device))
    with torch.inference_mode():
        inputs = step("resize", lambda: network.recipe.prepare(pixels, size))
        output = step("network", lambda: network.compute(inputs))
        height, width = images[0].shape[:2]
        unknown = np.full(len(images), np.nan)  # focal lengths
        maps = step("maps", lambda: network.recipe.restore(output, slice(0, len(images)), height, width, unknown))
    step("copy back", lambda: maps.cpu())
    return found


def _segment_sums(place: Place) -> dict[str, float]:
    """Milliseconds of a weighted sum over sorted owners, by `bincount` and in other ways."""
    device, pixels, people = place.device, place.pick(3_000_000, 3_000), place.pick(160, 10)
    owner = torch.randint(people, (pixels,), device=device).sort().values
    values = torch.rand(pixels, device=device, dtype=torch.float64)
    lengths = torch.bincount(owner, minlength=people)
    ways = {
        "bincount": lambda: torch.bincount(owner, values, minlength=people),
        "index_add": lambda: torch.zeros(people, dtype=values.dtype, device=device).index_add_(0, owner, values),
        "segment_reduce": lambda: torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True),
        "ours": lambda: Segments(owner, people).sum(values),
    }
    return {name: round(least_ms(way, device, place.pick(5, 1)), 4) for name, way in ways.items()}
