"""Crowds of many shapes, and how to compare what became of them to the last bit."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import PipelineConfig, config_from_dict
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import PersonStatus
from tests.crowds import Stander, make_scene

CONFIGS = {mode: config_from_dict({"solver": {"mode": mode}}) for mode in ("paper", "joint")}
_SIZES = ((240, 320), (200, 150), (180, 260), (256, 256))  # (H, W) [px]


@contextmanager
def threads(number: int) -> Iterator[None]:
    """torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def place(scenes: list[Scene], body: BodyModel, config: PipelineConfig) -> list[PlacedScene]:
    return split_batch(scenes, SceneOptimizer(body, config)(collate_scenes(scenes)), config)


def make_crowds(body: BodyModel, count: int, seed: int = 0) -> list[Scene]:
    """Scenes of 1 to 9 people, near and far, in any pose, some of unknown age, one label in ten unusable."""
    rng = np.random.default_rng(seed)
    scenes = []
    for number in range(count):
        people = [
            Stander(
                x=float(rng.uniform(-1.5, 1.5)), z=float(rng.uniform(2.5, 7.0)), height=float(rng.uniform(1.1, 1.9)),
                factor=float(rng.uniform(0.9, 1.4)), age=float(rng.uniform(3, 60)), male_prob=float(rng.uniform()),
            )
            for _ in range(1 + number % 9)
        ]  # fmt: skip
        scene = make_scene(body, people, size=_SIZES[number % len(_SIZES)], focal=260, name=f"{number}")
        scene.pose[:, 3:] = rng.normal(0, 0.2, scene.pose[:, 3:].shape)
        scene.betas[:, 1:] = rng.normal(0, 0.5, scene.betas[:, 1:].shape)
        assert scene.disparity is not None
        scene.disparity = scene.disparity * rng.uniform(0.97, 1.03, scene.disparity.shape).astype(np.float32)
        scene.age_years[rng.uniform(size=len(people)) < 0.2] = np.nan
        if number % 10 == 9:
            scene.person_problem[0] = (PersonStatus.INVALID_LABEL, "pose is not finite")
        scenes.append(scene)
    return scenes


def raw_bytes(placed: PlacedScene) -> dict[str, bytes]:
    """Every number of a result, bit by bit (NaN and negative zeros too), and every word."""
    values = {f.name: getattr(placed, f.name) for f in dataclasses.fields(placed) if f.name != "scene"}
    return {name: _bytes_of(value) for name, value in values.items()}


def _bytes_of(value: object) -> bytes:
    if isinstance(value, dict):
        value = [(name, _bytes_of(item)) for name, item in sorted(value.items())]
    is_words = value is None or isinstance(value, str | list)
    return repr(value).encode() if is_words else np.asarray(value).tobytes()


def digest(placed: list[dict[str, bytes]]) -> str:
    return hashlib.sha256(b"".join(value for item in placed for value in item.values())).hexdigest()


def assert_same_bytes(found: Sequence[PlacedScene], expected: Sequence[dict[str, bytes]]) -> None:
    for placed, wanted in zip(found, expected, strict=True):
        other = [name for name, value in raw_bytes(placed).items() if value != wanted[name]]
        assert not other, f"{placed.scene.image_id}: other bytes in {other}"
