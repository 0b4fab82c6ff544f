"""Inputs of `jobs/gpu_check.py`: drawn crowds as files, networks with random weights, batches on the device."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from depth_tiny import build_large_network, build_tiny_network
from transformers import DepthAnythingForDepthEstimation

from dto_pipeline.collate import collate_scenes
from dto_pipeline.config import PipelineConfig, load_config
from dto_pipeline.data.images import ImageStore, read_image
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.scenes import SceneLoader
from dto_pipeline.lab.crowd_files import (
    BENCH_SEED,
    PersonRows,
    bench_numbers,
    encode_picture,
    image_name,
    write_plain_data,
    write_scene,
)
from dto_pipeline.lab.known_scenes import CrowdScene
from dto_pipeline.models.body import load_body
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import Scene, SceneBatch

LARGE_SCALE = 2.25  # of the pictures that stand for full HD: 1440 x 1080


@dataclass(frozen=True)
class Place:
    """The folders of a check, and whether everything is shrunk."""

    scratch: Path
    out: Path
    small: bool

    def pick(self, full: Any, small: Any) -> Any:
        return small if self.small else full

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def manifest(self) -> Manifest:
        return Manifest.open(self.scratch / "vga" / "manifest.parquet")

    @property
    def network(self) -> Path:
        return self.scratch / "network"

    def config(self, *settings: str) -> PipelineConfig:
        return load_config(None, ["body.model_path=demo", *settings])

    @property
    def seen(self) -> list[str]:
        """Options of the command: the depth network instead of depth files."""
        settings = ["body.model_path=demo", "depth.source=model", f"depth.model={self.network}"]
        settings.append(f"depth.short_side={self.pick(518, 56)}")
        return [word for setting in settings for word in ("--set", setting)]

    def seeing(self, *settings: str) -> PipelineConfig:
        """The same as a config."""
        return self.config(*self.seen[1::2], *settings)


def build_network(place: Place) -> DepthAnythingForDepthEstimation:
    """Depth Anything V2 Large with random weights (small: a tiny network)."""
    if place.small:
        return build_tiny_network(64, 4)
    with place.device:  # weights are drawn there: a third of a billion numbers
        return build_large_network()


def draw_pictures(place: Place) -> tuple[int, int, int]:
    """Write crowds, manifest, full HD pictures and network. Returns how many images, distinct, full HD ones."""
    distinct, repeats, large = place.pick((64, 16, 24), (2, 2, 1))
    numbers = bench_numbers(distinct)
    root, rows = place.scratch / "vga", []
    jobs = [(root, number, new, place.small) for new, number in enumerate(numbers)]
    tall = [(place.scratch / "tall", number, place.small) for number in numbers[:large]]
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), multiprocessing.get_context("fork")) as pool:
        coming = pool.map(_draw_tall, tall)
        rows = list(pool.map(_draw, jobs))
        list(coming)
    for new in range(distinct, distinct * repeats):
        for folder, end in (("images", ".jpg"), ("depth", ".npy")):
            link = (root / folder / image_name(new)).with_suffix(end)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link((root / folder / image_name(new % distinct)).with_suffix(end), link)
        first = rows[new % distinct]
        people = len(first.truth["height"])
        again = {"image_name": np.full(people, image_name(new)), "image_number": np.full(people, new)}
        rows.append(dataclasses.replace(first, truth=first.truth | again))
    write_plain_data(root, rows)
    torch.manual_seed(0)
    network = build_network(place)
    network.half().save_pretrained(place.network)
    return len(rows), distinct, large


def _draw(job: tuple[Path, int, int, bool]) -> PersonRows:
    root, number, new, small = job
    torch.set_num_threads(1)
    return write_scene(root, CrowdScene(BENCH_SEED, number, load_body("demo"), scale=0.5 if small else 1.0), new)


def _draw_tall(job: tuple[Path, int, bool]) -> None:
    folder, number, small = job
    torch.set_num_threads(1)
    scene = CrowdScene(BENCH_SEED, number, load_body("demo"), scale=0.6 if small else LARGE_SCALE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.jpg").write_bytes(encode_picture(scene.picture))


def read_pictures(place: Place, count: int, kind: str = "vga") -> list[np.ndarray]:
    """`count` decoded pictures; they are repeated where there are fewer files."""
    folder = place.scratch / kind / ("images" if kind == "vga" else "")
    paths = sorted(folder.rglob("*.jpg"))[: min(count, 64)]
    decoded = [read_image(path).rgb for path in paths]
    return [decoded[k % len(decoded)] for k in range(count)]


def make_batch(place: Place, images: int, groups: int, mode: str) -> tuple[SceneOptimizer, SceneBatch]:
    """`images` scenes of `BENCH_PEOPLE` x `groups` people with depth files, on the device."""
    config, manifest = place.config(f"solver.mode={mode}"), place.manifest
    rows = manifest.read_shard(0)
    needed = [k % rows.num_rows for k in range(images * groups)]
    depth = DepthFiles(Path(str(manifest.depth_root)))
    loader = SceneLoader(ImageStore(manifest.images_root), depth, config.evidence.render_max_side)
    scenes = loader.load(rows.take(needed))
    if bad := [scene.problem for scene in scenes if scene.problem]:
        raise RuntimeError(f"a picture of the check cannot be used: {bad[0]}")
    joined = [_join(scenes[k * groups : (k + 1) * groups]) for k in range(images)]
    return SceneOptimizer(load_body("demo").to(place.device), config), collate_scenes(joined, place.device)


def _join(scenes: list[Scene]) -> Scene:
    """The people of several scenes in the first one's picture."""
    if len(scenes) == 1:
        return scenes[0]
    names = ("pose", "betas", "transl", "age_years", "male_prob", "source_row", "bbox_xyxy", "det_score", "masks")
    people: dict[str, Any] = {name: np.concatenate([getattr(scene, name) for scene in scenes]) for name in names}
    problems = [problem for scene in scenes for problem in scene.person_problem]
    return dataclasses.replace(
        scenes[0], **people, same_as=None, has_mask=None, mask_score=None, person_problem=problems
    )


def make_learner(place: Place, images: int) -> tuple[Any, Any]:
    """A network of the published size (small: a tiny one) and a batch of the demo's crowds."""
    from dto_pipeline.train.checkpoint import begin_network
    from dto_pipeline.train.config import load_train_config
    from dto_pipeline.train.learner import Learner
    from tests.train.small_crowds import crowd_batch, tiny_config

    body = load_body("demo")
    full = ["body.model_path=demo", "loop.precision=bfloat16", "loop.warm_up=0", "loop.rate=1e-4"]
    config = tiny_config(loop__warm_up=0) if place.small else load_train_config(None, full)
    batch = crowd_batch(body, range(images), place.pick(1288, 112))
    torch.manual_seed(0)
    return Learner(config, begin_network(config)[0], body, place.device), batch.to(place.device)
