"""Train the demo's depth network (3.2 million weights) on synthetic crowds and write it into the package.

    python jobs/train_demo_depth.py --cache out/depth_training

Renders the training scenes once (0.35 s each on one core, kept in the cache), trains for about 20 minutes on one core
with bfloat16 instructions, measures on scenes never trained on, and writes dto_pipeline/assets/depth_tiny with a
README that holds the figures. Seeds are fixed; another machine's arithmetic gives other last bits, hence other weights.
Scenes come from seeds of their own, so that neither the demo's scenes nor the held-out ones are trained on.

The network cannot see the focal length, so it learns what a picture shows: disparity f / z, with the focal length f in
units of `TYPICAL_FOCAL` times the shorter side; a zoomed cut of a picture is nearer by its zoom. The offset is zero,
the scale is the picture's own, as the method expects. Targets lie on the grid of the network's output, corner to
corner.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from depth_tiny import build_tiny_network, save_tiny_network
from torch import nn
from torch.nn import functional

import dto_pipeline
from dto_pipeline.config import STAND_IN_BODY, DepthConfig
from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.lab.crowd import plan_crowd
from dto_pipeline.lab.crowd_files import encode_picture
from dto_pipeline.lab.demo import DEPTH_MEASURES, measure_network
from dto_pipeline.lab.known_scenes import CrowdScene
from dto_pipeline.models.body import load_body
from dto_pipeline.models.depth import METRES_PER_DEPTH
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.models.network_input import network_size, resize_to_network

HELD_OUT = 48  # scenes
TRAINING_SEED, HELD_OUT_SEED = 1000, 2000  # of the data sets; the demo's own is 7
TYPICAL_FOCAL = 1.4  # of the demo's cameras, in units of the shorter side
TRAINED_UNIT = 3.0  # while training, disparity is this * f / z [m]: 0.2 .. 1 on people
DEMO_SHORT_SIDE = 224  # what the network is run at [px]
_PERSON_WEIGHT = 4.0  # of a pixel of a person against one of the background
_LOG_FLOOR = 0.02  # added to disparity before its logarithm


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one input size."""

    short_side: int  # [px]
    steps: int
    rate: float  # highest learning rate


@dataclass(frozen=True)
class TrainingSettings:
    """All that determines the weights, besides versions and the machine's arithmetic."""

    scenes: int = 1100
    batch: int = 8
    stages: tuple[Stage, ...] = (Stage(168, 2000, 8e-4), Stage(224, 280, 2.5e-4))
    cut_share: float = 0.25  # of examples that are cuts of a picture rather than the whole
    warm_up: int = 100  # steps over which the rate rises, in each stage
    seed: int = 3


@dataclass(frozen=True)
class TrainingScene:
    """A picture with its truth."""

    jpeg: bytes
    inverse: np.ndarray  # (H, W) float16, 1 / z [1/m]
    person: np.ndarray  # (H, W) int8 index of the person seen, -1 = no person
    focal: float  # in units of TYPICAL_FOCAL times the shorter side


def load_training_scenes(cache: Path, seed: int, numbers: range) -> list[TrainingScene]:
    """The scenes of a data set; those that the cache folder lacks are rendered (0.35 s each on one core)."""
    body = load_body(STAND_IN_BODY)
    scenes = []
    for number in numbers:
        jpeg, *maps = (cache / f"{seed}-{number:05d}{suffix}" for suffix in (".jpg", ".inverse.npy", ".person.npy"))
        if not all(path.exists() for path in (jpeg, *maps)):
            picture = CrowdScene(seed, number, body).picture
            write_bytes_atomic(jpeg, encode_picture(picture))
            np.save(maps[0], (1 / picture.z).astype(np.float16), allow_pickle=False)
            np.save(maps[1], picture.person.astype(np.int8), allow_pickle=False)
        inverse, person = (np.load(path, allow_pickle=False) for path in maps)
        view = plan_crowd(seed, number).view
        focal = view.focal / min(view.height, view.width) / TYPICAL_FOCAL
        scenes.append(TrainingScene(jpeg.read_bytes(), inverse, person, focal))
    return scenes


def train_depth_network(
    network: nn.Module, scenes: list[TrainingScene], settings: TrainingSettings, say: Callable[[str], None]
) -> None:
    """Train in place: AdamW, one-cycle rate per stage, bfloat16 arithmetic, exponential averaging at the end.

    Args:
        network: of `depth_tiny.build_tiny_network`; its output is then `TRAINED_UNIT` * f / z.
        scenes: to learn from.
        settings: seeds, steps and rates.
        say: gets a line of progress every hundred steps.
    """
    rng = np.random.default_rng(settings.seed)
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=averaging)
    started = time.monotonic()
    for stage in settings.stages:
        optimizer = torch.optim.AdamW(network.parameters(), lr=stage.rate, weight_decay=0.02)
        shape = _one_cycle(stage.steps, settings.warm_up)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        recent: list[float] = []
        for step, batch in enumerate(_batches(scenes, stage, settings, rng), start=1):
            recent.append(_train_step(network, optimizer, *batch))
            schedule.step()
            average.update_parameters(network)
            if step % 100 == 0:
                loss, passed = np.mean(recent[-100:]), time.monotonic() - started
                say(f"{stage.short_side} px, step {step}/{stage.steps}: loss {loss:.4f}, {passed:.0f} s")
    network.load_state_dict(average.module.state_dict())


def measure_folder(folder: Path, scenes: list[TrainingScene]) -> dict[str, float]:
    """`measure_network` of the network in a folder on scenes it was not trained on, loaded as a run does."""
    network = DepthNetwork(DepthConfig(source="model", model=str(folder), short_side=DEMO_SHORT_SIDE))
    pictures = (
        (_decode(scene.jpeg), 1 / scene.inverse.astype(np.float64).clip(1e-5), scene.person) for scene in scenes
    )
    return measure_network(network, pictures)


def _decode(jpeg: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(jpeg, fastdct=False, fastupsample=False)


def depth_loss(found: torch.Tensor, true: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Scale-and-shift-invariant error of disparity, its gradients, and an anchor on its absolute value.

    Without the anchor the offset of the disparity would be free, and `depth = 1 / disparity` would bend.

    Args:
        found, true: (B, h, w) disparity in the same unit; weight: (B, h, w) of each pixel.
    """
    aligned = _normalised(found, weight) - _normalised(true, weight)
    invariant = (weight * aligned.abs()).sum() / weight.sum()
    steps = [torch.diff(aligned, dim=axis).abs().mean() for axis in (1, 2)]
    ratio = ((found + _LOG_FLOOR) / (true + _LOG_FLOOR)).log().abs()
    anchor = (weight * ratio).sum() / weight.sum()
    return invariant + sum(steps) + anchor


def _normalised(disparity: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Disparity minus its weighted mean, over its weighted mean absolute deviation, per image."""
    total = weight.sum((1, 2), keepdim=True)
    centred = disparity - (weight * disparity).sum((1, 2), keepdim=True) / total
    return centred / ((weight * centred.abs()).sum((1, 2), keepdim=True) / total).clamp_min(1e-3)


def _train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, true: torch.Tensor, person: torch.Tensor
) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images).predicted_depth
    loss = depth_loss(found.float(), true, 1 + (_PERSON_WEIGHT - 1) * person)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _batches(
    scenes: list[TrainingScene], stage: Stage, settings: TrainingSettings, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`stage.steps` batches, each of scenes of one shape: (B, 3, h, w) images, (B, h, w) disparity and people."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, scene in enumerate(scenes):
        shapes.setdefault(scene.inverse.shape, []).append(index)
    groups = list(shapes.values())
    share = np.array([len(group) for group in groups]) / len(scenes)
    for _ in range(stage.steps):
        group = groups[rng.choice(len(groups), p=share)]
        chosen = [scenes[index] for index in rng.choice(group, settings.batch)]
        examples = [_example(scene, stage.short_side, settings.cut_share, rng) for scene in chosen]
        images, true, person = (torch.stack(part) for part in zip(*examples, strict=True))
        yield images, true, person


def _example(
    scene: TrainingScene, short_side: int, cut_share: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A cut of one scene, randomly mirrored, lighter or darker."""
    height, width = scene.inverse.shape
    size = network_size(height, width, short_side)
    window, zoom = _cut_window((height, width), cut_share, rng)
    rgb = _decode(scene.jpeg)[window]
    image = resize_to_network(torch.from_numpy(np.ascontiguousarray(rgb))[None], size)[0]
    image = image * float(rng.uniform(0.8, 1.25)) + torch.from_numpy(rng.normal(0, 0.12, (3, 1, 1)).astype(np.float32))
    unit = TRAINED_UNIT * scene.focal * zoom
    true, person = (_on_grid(values[window], size) for values in (scene.inverse, scene.person >= 0))
    if rng.random() < 0.5:
        image, true, person = (values.flip(-1) for values in (image, true, person))
    return image, unit * true, person


def _cut_window(shape: tuple[int, int], often: float, rng: np.random.Generator) -> tuple[tuple[slice, slice], float]:
    """Rows and columns of a cut of a picture (`often`, else the whole), and how many times it is enlarged."""
    share = float(rng.uniform(0.8, 1.0)) if rng.random() < often else 1.0
    height, width = (round(side * share) for side in shape)
    top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(shape, (height, width), strict=True))
    return (slice(top, top + height), slice(left, left + width)), 1 / share


def _on_grid(values: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Values (H, W) at the h x w pixels of the network's output."""
    whole = torch.from_numpy(values.astype(np.float32))[None, None]
    return functional.interpolate(whole, size, mode="bilinear", align_corners=True)[0, 0]


def _one_cycle(steps: int, warm_up: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up))))

    return factor


def write_readme(folder: Path, settings: dict[str, Any], figures: dict[str, float]) -> None:
    """Describe the weights next to them: what they are, how they were made, their figures."""
    lines = [
        "# The demo's depth network",
        "",
        "Depth Anything's architecture (DINOv2 backbone, DPT head), 3.2 million weights in float16, trained from",
        "scratch on this project's own synthetic crowds by `jobs/train_demo_depth.py`. It knows these pictures only:",
        "it is here so that the demo runs images -> depth network -> labels for real. Licence: Apache-2.0, as is the",
        "code.",
        "",
        f"Output: disparity, about 500 m / z of a camera whose focal length is {TYPICAL_FOCAL} times the shorter side.",
        f"Run it with `depth.source=model depth.model=demo depth.short_side={DEMO_SHORT_SIDE}`.",
        "",
        f"Settings: {json.dumps(settings)}",
        "",
        f"## Unseen scenes (seed {HELD_OUT_SEED}, {figures['persons']:.0f} people)",
        "",
        *(f"- {title}: {figures[key]:.4f}" for key, title in DEPTH_MEASURES.items()),
        "",
    ]
    write_bytes_atomic(folder / "README.md", "\n".join(lines).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("out/depth_training"), help="folder of rendered scenes")
    default = Path(next(iter(dto_pipeline.__path__))) / "assets" / "depth_tiny"
    parser.add_argument("--out", type=Path, default=default, help="folder of the trained network")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = TrainingSettings()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    scenes = load_training_scenes(arguments.cache, TRAINING_SEED, range(settings.scenes))
    print(f"{len(scenes)} scenes")
    torch.manual_seed(settings.seed)
    network = build_tiny_network()
    train_depth_network(network, scenes, settings, lambda line: print(line, flush=True))
    save_tiny_network(network, arguments.out, METRES_PER_DEPTH / TRAINED_UNIT)
    figures = measure_folder(arguments.out, load_training_scenes(arguments.cache, HELD_OUT_SEED, range(HELD_OUT)))
    write_readme(arguments.out, asdict(settings), figures)
    print(figures)


if __name__ == "__main__":
    main()
